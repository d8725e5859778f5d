"""Task files for lmms-eval of a local copy of OVO-Bench, or of other items in its form: what is asked and how it is scored is
lmms-eval's own, from its task `ovobench`; the items and videos are local files.

lmms-eval asks about clips that were cut before (143 GB). Here a question is about the whole video, from its beginning to the
whole second after `realtime`, which is where the published clips end. `ovo_prompt` and `ovo_messages` are called by lmms-eval,
which the task files name them to. Units: seconds.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write, local_path, report_write_errors

OFFICIAL = "lmms_eval.tasks.ovobench.utils"
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: {output_type}
doc_to_text: !function {module}.ovo_prompt
doc_to_messages: !function {module}.ovo_messages
doc_to_target: task
process_results: !function {official}.{results}
generation_kwargs:
  max_new_tokens: 128
  temperature: 0
  do_sample: false
metric_list:
  - metric: {metric}
    aggregation: !function {official}.{aggregation}
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    data_dir: {videos}
"""
GROUP = "group: {name}\ntask: [{tasks}]\n"


def write_tasks(
    items_path: str | Path, videos: str | Path, out: str | Path, name: str, bad: json_lines.BadLines
) -> dict[str, int]:
    """Write a folder for `--include_path`: a task NAME_CATEGORY for each category that has items, and the group NAME.

    Args:
        items_path: `ovo_bench_new.json`, or items in its form.
        videos: the folder that `video` of the items is below.
        bad: how many malformed items may be left out.

    Returns:
        The number of items of each task.

    Raises:
        InputError: another file, no such folder, malformed items: each is named.
    """
    from svlm_jax.eval.ovo import CATEGORIES, read_items  # not above: lmms-eval imports this file, for any model

    videos, out = local_path(videos), local_path(out, "--out")
    if not videos.is_dir():
        raise InputError("--videos", f"{videos} (no such folder)", "the folder of the videos", "check the path")
    items = read_items(items_path, bad)
    with report_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        counts = {}
        for category, codes in CATEGORIES.items():
            chosen = [item for item in items if item.questions[0].task in codes]
            if chosen:
                task = f"{name}_{category}"
                _write_task(out, task, category, [item.record for item in chosen], videos)
                counts[task] = len(chosen)
        with atomic_write(out / f"{name}.yaml") as draft:
            draft.write_text(GROUP.format(name=name, tasks=", ".join(counts)), encoding="utf-8")
    return counts


def _write_task(out: Path, task: str, category: str, items: list[dict[str, Any]], videos: Path) -> None:
    forward = category == "forward"
    file = out.absolute() / f"{task}.jsonl"
    try:
        json_lines.write(file, items)
    except InputError:
        raise
    except ValueError:
        raise InputError("--items", "NaN or Infinity in an item", "JSON", "write null for it") from None
    text = TASK.format(
        task=task,
        items=json.dumps(str(file)),
        output_type="generate_until_multi_round" if forward else "generate_until",
        module=__name__,
        official=OFFICIAL,
        results="ovo_forward_process_results" if forward else "ovo_back_real_process_results",
        metric="forward_acc" if forward else "back_real_acc",
        aggregation="ovo_forward_acc" if forward else "ovo_back_real_acc",
        videos=json.dumps(str(videos.absolute())),
    )
    with atomic_write(out / f"{task}.yaml") as draft:
        draft.write_text(text, encoding="utf-8")


def ovo_prompt(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None, index: int = 0) -> str:
    """The prompt of lmms-eval for an item, or for its question `index`."""
    from lmms_eval.tasks.ovobench.utils import build_prompt  # pyright: ignore[reportMissingImports]

    return build_prompt(doc, index)


def ovo_messages(
    doc: Mapping[str, Any],
    lmms_eval_specific_kwargs: Mapping[str, Any],
    round_idx: int | None = None,
    previous_output: Any = None,
    previous_round_info: Any = None,
) -> Any:
    """The messages of an item, or of its question `round_idx`: then with what lmms-eval's rounds want beside them, which is
    whether the questions are over, the replies so far, and what to hand on."""
    questions, index = doc.get("test_info") or [doc], round_idx or 0
    if index >= len(questions):
        return None, True, previous_output, previous_round_info
    end = math.ceil(questions[index]["realtime"])
    path = Path(lmms_eval_specific_kwargs["data_dir"]) / doc["video"]
    video = {"type": "video", "url": str(path), "start_time": 0.0, "end_time": float(end)}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": ovo_prompt(doc, index=index)}]}]
    return messages if round_idx is None else (messages, False, previous_output, previous_round_info)
