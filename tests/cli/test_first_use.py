"""What a newcomer meets first: commands that say what is wrong in one line before anything is loaded, and what takes long."""

import importlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import svlm_jax
from benchmarks import estimates
from benchmarks.__main__ import parser as bench_parser
from svlm_jax import cli
from svlm_jax.cli import flags, model_flags, progress
from svlm_jax.cli import run as entry
from svlm_jax.errors import InputError
from svlm_jax.media.video import write_video
from svlm_jax.pretrained import SHIPPED, local_directory
from tests.support import HANG, ROOT


def command(module: str, *args: object, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    line = [sys.executable, "-m", module if "." in module or module == "benchmarks" else f"launch.{module}", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=cwd, stdin=subprocess.DEVNULL, check=False)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line, which is all, of a command that refused."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ") and len(result.stderr) < 300, result.stderr
    return result.stderr


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a command says of these flags, in this process: one line, before anything is looked for on the disk or the hub."""

    def run(module: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [module, *map(str, args)])
        with pytest.raises(SystemExit) as end:
            entry.run(importlib.import_module(module if "." in module else f"svlm_jax.cli.{module}").main)
        assert end.value.code == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and told.startswith("error: ") and len(told) < 300, told
        return told

    return run


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--vtx", "a"], "--vtx: got an argument that is unknown, expected --vtt"),
        (["--seed", "-1"], "--seed: got -1, expected 0 to 4294967295"),
        (["--seed", "1e300"], "--seed: got '1e300'"),
        (["--start", "nan"], "--start: got nan, expected a number, 0 to "),
        (["--start", "1e300"], "--start: got '1e300'"),
        (["--duration", "-3"], "--duration: got '-3'"),
        (["--fps", "inf"], "--fps: got 'inf'"),
        (["--temperature=-inf"], "--temperature: got '-inf'"),
        (["--top-k", "x" * 5000], "--top-k: got 'xxx"),
        (["--vision-window", "0"], "--vision-window: got '0'"),
        (["--mode", "x"], "--mode: got 'x', expected one of streaming, full"),
        (["--mode"], "--mode: got nothing, expected a value"),
        (["--rope-positions", "native"], "--moved-reply-kv reuse"),
        (["--fps", "3"], "--fps: got 3 fps"),
        (["--top-p", "0"], "--top-p: got 0"),
        (["--compile-cache", ""], "--compile-cache: got nothing"),
        (["--vtt", "x" * 5000], "file xxx"),
        (["--save-state", ""], "--save-state: got nothing, expected a path"),
    ],
    ids=lambda value: "_".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_one_line_under_the_name_that_was_typed(refused, typed, told):
    """Else: twenty lines of usage, a traceback, or names of fields that are no flags."""
    assert told.replace("'", "") in refused("stream", "match:5", *typed).replace("'", "")


def test_help_names_commands_as_they_are_typed():
    for typed in ("launch.stream", "launch.caption", "benchmarks"):
        result = command(typed, "--help")
        assert result.returncode == 0 and result.stdout.startswith(f"usage: python -m {typed} "), result.stdout[:200]
    result = command("svlm_jax.cli", "stream", "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: svlm stream "), result.stdout[:200]


def test_svlm_lists_its_commands_and_knows_near_misses():
    listing = command("svlm_jax.cli", "--help")
    assert listing.returncode == 0 and all(f"  {name} " in listing.stdout for name in cli.COMMANDS)
    assert "svlm: got steam, expected stream" in refusal(command("svlm_jax.cli", "steam"))
    assert command("svlm_jax.cli", "--version").stdout == f"svlm-jax {svlm_jax.__version__}\n"


def test_every_command_has_a_module_and_a_way_to_run_it_from_a_checkout():
    for name in cli.COMMANDS:
        assert find_spec(f"svlm_jax.cli.{name}") and (ROOT / "launch" / f"{name}.py").is_file()


def test_a_source_that_does_not_play_is_told_before_a_model_is_looked_for(refused, tmp_path):
    """Else: gigabytes are downloaded before a misspelled file name is told. The model here is an id that nobody can reach."""
    text, nobody = tmp_path / "nötes and more.mp4", "nobody/nothing"
    text.write_text("no video " * 99)
    absent = tmp_path / "absent.mp4"
    for source, word in ((text, "video"), (absent, "no such file"), (tmp_path, "no images")):
        assert word in refused("stream", source, "--model", nobody)
        assert word in refused("serve", "--source", source, "--model", nobody)
    assert "no such file" in refused("caption", absent, "--model", nobody)
    film = tmp_path / "film.mp4"
    write_video(film, np.zeros((4, 32, 32, 3), np.uint8), 2)
    assert "start" in refused("stream", film, "--start", 99, "--model", nobody)


def test_what_caption_cannot_read_is_told_before_the_weights_are_loaded(
    refused, tmp_path, tiny_dir, processor_dir, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_dir / "config.json").read_bytes())
    for name in ("film.mp4", "photo.jpg"):  # the model has no weights: who looked for them would say so
        (tmp_path / name).write_text("neither")
        told = refused("caption", name, "--model", ".", "--processor", processor_dir)
        assert name in told and "safetensors" not in told


@pytest.mark.parametrize("kernel", ["mosaic_gpu", "mosaic_gpu_pingpong", "cudnn", "tpu"])
def test_kernels_of_another_device_are_refused_in_one_line(refused, kernel):
    assert f"--attention: got {kernel} on a CPU" in refused("stream", "match:5", "--attention", kernel)


def test_devices_that_are_not_there_are_one_line():
    """Else: a traceback of jax for a variable that was set in another terminal."""
    code = "import sys, jax\nfrom svlm_jax.cli.run import run\nrun(lambda: jax.device_put(1.0))"
    line = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "rocm"}
    assert "JAX_PLATFORMS: got rocm (" in refusal(subprocess.run(line, capture_output=True, text=True, env=env, cwd=ROOT))


def test_kernels_that_do_not_take_a_model_are_one_line(refused, monkeypatch):
    def main() -> None:
        raise NotImplementedError("mosaic_gpu: got float32 and head dim 64; takes bfloat16, multiples of 16 to 128")

    monkeypatch.setattr("svlm_jax.cli.scratch.main", main)
    assert "--attention: got mosaic_gpu: got float32" in refused("scratch")


@pytest.mark.parametrize(
    "name", ["", " ", "touchlin", "Touchline", "/no/such/dir", "./x", "a/b/c", "~/none", "x" * 5000, "\0", "é/ü"]
)
def test_a_name_that_is_no_model_is_told_without_asking_the_hub(name, monkeypatch):
    """Else: a misspelled name is a long error of a connection, or a minute's wait."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError) as told:
        local_directory(name)
    line = str(told.value)
    assert all(shipped in line for shipped in SHIPPED) and len(line) < 300
    assert ("did you mean touchline?" in line) == (name.lower().startswith("touch"))


def test_a_model_is_one_line_in_a_notebook():
    told = repr(svlm_jax.from_pretrained("touchline"))
    assert told == "Pretrained(QwenVL, 2.9 M parameters, bfloat16, attention xla, 493 tokens)"


def test_shipped_models_say_what_they_know_before_they_watch_something_else(tmp_path):
    """Else: the first video of a newcomer looks like a broken program, which greets a cup and is silent."""
    for source in ("holiday.mp4", "0", "rtsp://camera/1", str(tmp_path)):
        assert "touchline knows only the generated game" in model_flags.knows_only_its_game("touchline", source)
    assert (
        model_flags.knows_only_its_game("touchline", "match:5") == model_flags.knows_only_its_game("DIR", "holiday.mp4") == ""
    )


def test_without_the_packages_a_command_says_which_environment(tmp_path):
    """Else: a traceback about jax, for everybody who forgot to activate .venv."""
    bare = subprocess.run(
        [sys.executable, "-S", "-m", "launch.stream", "match:1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "got no such package" in refusal(bare) and "activate .venv" in bare.stderr


def test_commands_that_take_minutes_say_what_they_do_and_how_long(tmp_path, capsys, monkeypatch):
    parsed = bench_parser().parse_args
    for typed in (["convert"], ["aot"], ["stream"], ["kernels"], ["serve"], ["device"], ["train", "--topology", "h100x8"]):
        assert " min" in estimates.estimate(parsed(typed)) or " s on " in estimates.estimate(parsed(typed)), typed
    from benchmarks import findings
    from svlm_jax.cli import world
    from svlm_jax.touchline import recipe

    assert "two hours" in recipe.plan(tmp_path, recipe.steps(6, recipe.Amount()), False)
    made = world.plan(world.Filming(tmp_path, seconds=7200, jobs=2), range(4))
    assert made.startswith("4 films of 2.0 h, 2 at a time: about ") and " MB in " in made
    variants = findings.variants(findings.StreamConfig(), {})
    files = {variant: {1000000: tmp_path / variant.file("weights", 1000000, 7200)} for variant in variants}
    told = findings._plan(files, 7200, tmp_path)
    assert told.startswith(f"{len(variants)} streams of up to 2.0 h (0 exist): about 85 min")
    assert f"kept in {tmp_path}" in told
    for paths in files.values():
        paths[1000000].touch()
    assert findings._plan(files, 7200, tmp_path).startswith("0 streams")


def test_outside_a_checkout_no_benchmark_writes_into_the_current_folder(refused, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.DOCS", None)
    assert "--out: got nothing, outside a checkout" in refused("benchmarks.__main__", "findings")


def test_a_reader_who_has_gone_and_a_screen_without_the_letters_end_nothing_badly(tmp_path):
    read, write = os.pipe()
    os.close(read)
    gone = subprocess.run(
        [sys.executable, "-c", "from svlm_jax.cli.run import run\nrun(lambda: print('x' * 100000))"],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    os.close(write)
    assert (gone.returncode, gone.stderr) == (entry.CLOSED, "")
    poor = subprocess.run(
        [sys.executable, "-c", "from svlm_jax.cli.run import run\nrun(lambda: print('✓'))"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (poor.returncode, poor.stdout) == (0, "?\n")


def test_interrupted_a_command_says_so_in_one_line():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        entry.run(interrupted)
    assert end.value.code == 130


def test_sigterm_ends_a_command_as_ctrl_c_does_and_leaves_no_draft(tmp_path):
    """What a container or a scheduler sends: a half written copy of 72B would stay on the disk until the next conversion."""
    code = (
        "import sys, time\nfrom svlm_jax.cli.run import run\nfrom svlm_jax.files import atomic_directory\n"
        "def main():\n with atomic_directory(sys.argv[1]):\n  print('at work', flush=True)\n  while True: time.sleep(600)\n"
        "run(main)"
    )
    command = [sys.executable, "-c", code, tmp_path / "out"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "at work\n"
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=HANG)
    assert (child.returncode, stderr) == (143, "\ninterrupted\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_what_python_would_only_hear_of_later(number):
    """Else: Ctrl-C while a large model is compiled does nothing for minutes. SIGTERM is that of a job in the background of a
    script, which ignores SIGINT."""
    code = (
        "import ctypes, signal, sys\nfrom svlm_jax.cli.progress import interruptible\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"signal.signal({number:d}, lambda *_: None)\n"  # as svlm stream, which ends after the chunk
        "with interruptible():\n print('busy', flush=True)\n sleep = ctypes.CDLL(None).sleep\n while True: sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "busy\n"
    child.send_signal(number)
    _, stderr = child.communicate(timeout=HANG)
    assert (child.returncode, stderr) == (128 + number, "\ninterrupted\n")


def test_what_is_interruptible_leaves_the_handlers_of_others_as_they_were():
    before = lambda *_: None  # noqa: E731
    kept = signal.signal(signal.SIGINT, before)
    with progress.interruptible():
        with progress.interruptible():
            pass
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, kept)
    worker = threading.Thread(target=lambda: progress.interruptible().__enter__())  # signals are the main thread's alone
    worker.start()
    worker.join()


def test_progress_says_how_long_the_rest_takes(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 21.0, 101.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "live", lambda: False)
    said = progress.Progress("draw", "seconds")
    for done in (0, 10, 20, 100):
        said(done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "draw: 10/100 seconds, 11 s, about 90 s left",
        "draw: 20/100 seconds, 21 s, about 80 s left",
        "draw: 100/100 seconds, 101 s",
    ]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "dumb")
        assert not progress.live()
        monkeypatch.setenv("TERM", "xterm")
        assert progress.live()
    os.close(leader)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["demo", "serve", "test"])
def test_make_says_what_it_installs_before_it_is_silent(target, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/false")  # an installation that fails
    made = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0 and "installing svlm-jax" in made.stderr and " minutes" in made.stderr


def test_numbers_have_bounds():
    assert flags.number(0, 10)("2.5") == 2.5 and flags.integer(0)("7") == 7 and flags.integer_or_none("none") is None
    for wrong in ("nan", "inf", "-1", "1e300", "", "a", "11"):
        with pytest.raises(flags.argparse.ArgumentTypeError, match="expected a number, 0 to 10"):
            flags.number(0, 10)(wrong)
