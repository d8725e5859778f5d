"""Claims about lmms-eval itself, installed as docs/evaluation_lmms.md says: it finds the model by its entry point, asks it what
a task asks, and logs what the model says. Slow: it installs 2 GB.
"""

import json
import os
import random
import re
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

import svlm_jax
from svlm_jax.eval import ovo, ovo_score
from svlm_jax.eval.frames import prefix
from svlm_jax.json_lines import BadLines
from svlm_jax.media.video import write_video
from tests.support import ROOT

pytestmark = pytest.mark.slow

LENGTH = 8  # tokens of a reply
OPTIONS = ["red", "blue", "green", "white"]
REALTIME = [
    {"id": 1, "task": "OCR", "video": "a.mp4", "realtime": 3.4, "question": "Which?", "options": OPTIONS, "gt": 0},
    {"id": 2, "task": "STU", "video": "b.mp4", "realtime": 2, "question": "Where?", "options": OPTIONS[:2], "gt": 1},
    {"id": 3, "task": "OCR", "video": "b.mp4", "realtime": 5, "question": "Who?", "options": OPTIONS, "gt": 3},
]
COUNTS = [{"realtime": second, "count": second} for second in (1, 2, 4)]
CLUES = [{"realtime": 1, "type": 0}, {"realtime": 3, "type": 1}]
FORWARD = [
    {"id": 4, "task": "REC", "video": "a.mp4", "activity": "jump", "test_info": COUNTS},
    {"id": 5, "task": "SSR", "video": "b.mp4", "test_info": [{"realtime": 2.5, "step": "boil water", "type": 1}]},
    {"id": 6, "task": "CRR", "video": "b.mp4", "question": "Who won?", "test_info": CLUES},
]
# Run beside lmms-eval: its prompt for each question of each item.
PROMPTS = """import json, sys
from lmms_eval.tasks.ovobench.utils import build_prompt
items = json.loads(sys.argv[1])
print(json.dumps([[build_prompt(item, i) for i in range(len(item.get("test_info", [0])))] for item in items]))
"""

# The same: the official score of each category, for replies by key.
SCORES = """import json, sys
from lmms_eval.tasks.ovobench import utils
from lmms_eval.tasks.ovobench.score_utils import score
items, replies = json.loads(sys.argv[1])
def mean(values):
    return sum(values) / len(values)
def average(marks):
    return mean([mean(each) for each in marks.values()])
asked = [utils.ovo_back_real_process_results(item, [replies[str(item["id"])]]) for item in items if "gt" in item]
later = [item for item in items if "test_info" in item]
rounds = [[replies[f"{item['id']}_{i}"] for i in range(len(item["test_info"]))] for item in later]
told = [utils.ovo_forward_process_results(item, [each]) for item, each in zip(later, rounds)]
print(json.dumps({
    "realtime": average(score.calculate_score_backward_realtime([each["back_real_acc"] for each in asked])[1]),
    "forward": average(score.calculate_score_forward([each["forward_acc"] for each in told])[1]),
}))
"""
REPLIES = [
    "A",
    "B",
    "All",
    "(D)",
    "**B**",
    "",
    "Yes",
    "no",
    "No.",
    "Not sure",
    " Y ",
    "N",
    "3",
    "1 or 0",
    "2 times",
    "10",
    "\u0663",
]


def recipe() -> list[list[str]]:
    """The commands of the page, as typed."""
    page = (ROOT / "docs" / "evaluation_lmms.md").read_text()
    return [[word.strip("'") for word in line.split()] for line in re.findall(r"(?m)^pip (install .*)$", page)]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment in which only the page's recipe was followed, in a copy of this checkout."""
    folder = tmp_path_factory.mktemp("lmms")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if name.startswith(("svlm_jax/", "pallas_kernels/")) or "/" not in name:
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "src" / name)
    venv.create(folder / "env", with_pip=True)
    commands = recipe()
    assert len(commands) == 3, commands
    for command in commands:
        run(folder / "env" / "bin" / "python", "-m", "pip", *command, cwd=folder / "src")
    return folder / "env" / "bin" / "python"


def run(*command: object, check: bool = True, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    # Not in the checkout: `python -m` would import from there, and not what was installed.
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd or Path(words[0]).parent, capture_output=True, text=True, env=outside | env)
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shallow_dir, processor_dir) -> Path:
    """A model in one folder, videos, items of OVO-Bench's form, and the task files that `svlm evaluate lmms` makes of them."""
    folder = tmp_path_factory.mktemp("ovo")
    for source in (processor_dir, shallow_dir):
        shutil.copytree(source, folder / "model", dirs_exist_ok=True)
    (folder / "videos").mkdir()
    for seed, (name, seconds) in enumerate((("a", 4), ("b", 5))):
        frames = np.random.default_rng(seed).integers(0, 256, (seconds * 4, 56, 56, 3), dtype=np.uint8)
        write_video(folder / "videos" / f"{name}.mp4", frames, fps=4)
    (folder / "items.json").write_text(json.dumps([*FORWARD, *REALTIME]))
    return folder


def write_tasks(python: Path, folder: Path) -> None:
    paths = ("--items", folder / "items.json", "--videos", folder / "videos", "--out", folder / "tasks")
    run(python.parent / "svlm", "evaluate", "lmms", *paths)


def lmms_eval(python: Path, folder: Path, out: str, *more: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    model = f"pretrained={folder / 'model'},fps=2,max_new_tokens={LENGTH}"
    options = ["--model", "svlm_jax", "--model_args", model, "--include_path", folder / "tasks", "--output_path", folder / out]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "JAX_PLATFORMS": "cpu"}
    settings = ["--gen_kwargs", f"max_new_tokens={LENGTH}", "--log_samples", "--verbosity", "DEBUG"]
    return run(python, "-m", "lmms_eval", *options, *settings, *more, check=check, **offline)


def samples(folder: Path, task: str) -> list[dict]:
    (file,) = folder.rglob(f"*_samples_{task}.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def test_lmms_eval_asks_the_model_and_logs_what_it_says(python, folder):
    """Two tasks, one of several rounds, in batches of two: each reply is that of the same prompt, asked alone and directly."""
    write_tasks(python, folder)
    done = lmms_eval(python, folder, "out", "--tasks", "local_ovo", "--batch_size", 2)
    realtime, forward = samples(folder / "out", "local_ovo_realtime"), samples(folder / "out", "local_ovo_forward")
    prompts = json.loads(run(python, "-c", PROMPTS, json.dumps([*REALTIME, *FORWARD])).stdout.splitlines()[-1])
    vlm = svlm_jax.from_pretrained(folder / "model")

    def reply(item: dict, index: int, prompt: str) -> str:
        end = int(np.ceil((item.get("test_info") or [item])[index]["realtime"]))
        frames = prefix(folder / "videos" / item["video"], end, max_frames=64)
        clip = vlm.processor.video(frames.pixels, fps=frames.fps)
        return vlm.generate([vlm.processor.prompt(prompt, clip)], max_new_tokens=LENGTH)[0].split("\n\n")[0].strip()

    want = [
        [reply(item, i, text) for i, text in enumerate(texts)]
        for item, texts in zip([*REALTIME, *FORWARD], prompts, strict=True)
    ]
    assert [[sample["filtered_resps"]] for sample in realtime] == want[:3]
    assert [sample["filtered_resps"] for sample in forward] == want[3:]
    assert [len(replies) for replies in want] == [1, 1, 1, 3, 1, 2] and any(map(any, want))
    assert all(1 <= count["output_tokens"] <= LENGTH for sample in realtime for count in sample["token_counts"])
    (results,) = (folder / "out").rglob("[0-9]*_results.json")
    scores = json.loads(results.read_text())["results"]
    # lmms-eval's rule: the letter anywhere in the reply; the mean of the means of OCR and STU
    hits = [int(letter in replies[0]) for letter, replies in zip("ABD", want, strict=False)]
    assert scores["local_ovo_realtime"]["back_real_acc,none"] == pytest.approx(100 * ((hits[0] + hits[2]) / 2 + hits[1]) / 2)
    assert "forward_acc" in done.stdout


def test_compat_is_the_score_of_lmms_eval(python, tmp_path):
    """`svlm evaluate ovo score` against lmms-eval's own functions, on replies that are right, wrong, empty and odd."""
    draw = random.Random(0)
    items = [{**item, "id": number} for number, item in enumerate(draw.choices([*REALTIME, *FORWARD], k=200))]
    (tmp_path / "items.json").write_text(json.dumps(items))
    questions = [each for item in ovo.read_items(tmp_path / "items.json", BadLines()) for each in item.questions]
    replies = {question.key: draw.choice(REPLIES) for question in questions}
    theirs = json.loads(run(python, "-c", SCORES, json.dumps([items, replies])).stdout.splitlines()[-1])
    _, ours = ovo_score.score(questions, replies, "")
    assert {name: ours["categories"][name]["compat"] for name in theirs} == pytest.approx(theirs) and all(theirs.values())


def test_a_missing_video_stops_the_run_and_leaves_no_result(python, folder, tmp_path):
    """lmms-eval exits with 0 after an error, unless it is told --verbosity DEBUG."""
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("tasks", "out", "hub"))
    (copy / "videos" / "b.mp4").unlink()
    write_tasks(python, copy)
    done = lmms_eval(python, copy, "out", "--tasks", "local_ovo_realtime", check=False)
    assert done.returncode != 0
    assert re.search(r"InputError: task local_ovo_realtime document 1 .*b\.mp4", done.stderr), done.stderr[-2000:]
    assert not list((copy / "out").rglob("*_results.json"))
