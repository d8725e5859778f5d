"""How the shipped model is made from nothing: films, a tokenizer, random weights, six stages of training, an export.

`STAGES` are the settings of training, `STEPS` the commands around them, in order; `svlm tiny` runs them one after the other.
`svlm train --config touchline_stage4` is one stage alone. Units: seconds of windows, tokens of previous text.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.train.config import MeshConfig, OptimizerConfig, TrainConfig

FRAME_PATCHES = 96  # of a frame of 168 x 112 pixels
TEXT_ONLY = {"patches": 4, "frame_patches": 4}  # a bucket for windows without frames


def _stages() -> tuple[TrainConfig, ...]:
    """The six stages; each starts from the weights of the one before, with what it says changed."""
    # Stage 1, to see and to read: windows of 2 s, a question in every second that the picture or the words just before answer.
    # Batches are small: copying from text is learned in steps, not in samples.
    see_and_read = TrainConfig(
        model="runs/tiny/0",
        run_dir="runs/tiny/stage1",
        data=DataConfig(
            paths=("runs/tiny/see.jsonl",),
            root="runs/tiny/films",
            as_streamed=True,
            sink=16,
            text_window=24,
            buckets=(Bucket(tokens=192, patches=192, labels=32, frame_patches=FRAME_PATCHES),),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, b2=0.98, weight_decay=0.01),
        mesh=MeshConfig(fsdp=1),  # one device: fewer samples a micro-step than a host may have of them
        trainable=".*",
        batch_size=8,
        micro_batch_size=8,
        dtype="float32",
        remat="save_attention",
        steps=1200,
        save_every=200,
    )
    # Stage 2, to count: windows of 4 s with a minute of previous text, which is learned too: many scores a step.
    count = replace(
        see_and_read,
        model="runs/tiny/1",
        run_dir="runs/tiny/stage2",
        data=replace(
            see_and_read.data,
            paths=("runs/tiny/count.jsonl",),
            text_window=176,
            learn_previous=192,
            buckets=(Bucket(tokens=464, patches=384, labels=256, frame_patches=FRAME_PATCHES),),
        ),
        batch_size=4,
        micro_batch_size=4,
        steps=1800,
    )
    # Stage 3, to follow: windows of 8 s in which a score is said. What stands far back in long text is found by a model that
    # has found it in short text first.
    follow = replace(
        see_and_read,
        model="runs/tiny/2",
        run_dir="runs/tiny/stage3",
        data=replace(
            see_and_read.data,
            paths=("runs/tiny/follow.jsonl",),
            sink=64,
            text_window=320,
            buckets=(Bucket(tokens=896, patches=768, labels=96, frame_patches=FRAME_PATCHES),),
        ),
        batch_size=2,
        micro_batch_size=2,
        optimizer=replace(see_and_read.optimizer, learning_rate=6e-4),
        steps=1200,
    )
    # Stage 4, to stream: the paper's windows of 24 s every 12 s.
    stream = replace(
        follow,
        model="runs/tiny/3",
        run_dir="runs/tiny/stage4",
        data=replace(
            follow.data,
            paths=("runs/tiny/remember.jsonl",),
            learn_previous=384,
            buckets=(Bucket(tokens=1792, patches=2304, labels=576, frame_patches=FRAME_PATCHES),),
        ),
    )
    # Stage 5, to remember: as much previous text as a match lasts, beside games without frames. A film has a score in 20 s,
    # counting takes many more, and text is cheap.
    remember = replace(
        stream,
        model="runs/tiny/4",
        run_dir="runs/tiny/stage5",
        data=replace(
            stream.data,
            paths=("runs/tiny/stream.jsonl", "runs/tiny/begin.jsonl", "runs/tiny/text24.jsonl", "runs/tiny/text52.jsonl"),
            text_window=576,
            learn_previous=640,
            buckets=(
                Bucket(tokens=1408, labels=992, **TEXT_ONLY),
                Bucket(tokens=2040, labels=1080, **TEXT_ONLY),
                Bucket(tokens=2048, patches=2304, labels=1152, frame_patches=FRAME_PATCHES),
            ),
        ),
        batch_size=4,
        micro_batch_size=1,
        steps=700,
    )
    # Stage 6, to remember as it streams: windows of the 16 s that a stream retains, frames for the last 8 of them alone. With
    # windows of 24 s, the shape of stage 4, the model was right in windows and wrong in streams.
    as_streamed = replace(
        remember,
        model="runs/tiny/5",
        run_dir="runs/tiny/stage6",
        data=replace(
            remember.data,
            paths=("runs/tiny/shown.jsonl", "runs/tiny/begin.jsonl", "runs/tiny/text_6.jsonl", "runs/tiny/far_6.jsonl"),
            buckets=(
                Bucket(tokens=1312, labels=800, **TEXT_ONLY),
                Bucket(tokens=1344, patches=768, labels=840, frame_patches=FRAME_PATCHES),
                Bucket(tokens=2048, patches=2304, labels=1152, frame_patches=FRAME_PATCHES),
            ),
        ),
        steps=1200,
    )
    return see_and_read, count, follow, stream, remember, as_streamed


STAGES = _stages()
CONFIGS = {f"touchline_stage{number}": config for number, config in enumerate(STAGES, 1)}


class Step(NamedTuple):
    """A command without its `svlm`, and the file or directory that is there when it is done."""

    result: str
    command: str


class Amount(NamedTuple):
    """How much of everything.

    Attributes:
        short, practice, drills, long: seeds of films; `drills_again`: those of the last stages; `seconds` of a long film.
        text_games, text_asked, text_practice, text_drills: seeds of games without frames, of those with questions too, of
            practice games and of drills.
        new_games: without frames, for each stage from the sixth on.
        training: more flags of `svlm train`.
    """

    short: str = "100:220"
    practice: str = "300:360"
    drills: str = "600:690"
    drills_again: str = "600:630"
    long: str = "0:4"
    seconds: int = 7200
    text_games: str = "10000:10060"
    text_asked: str = "10000:10120"
    text_practice: str = "20000:20240"
    text_drills: str = "30000:30200"
    new_games: int = 352
    training: str = ""


FEW = "10000:10002"
QUICK = Amount("100:103", "300:303", "600:603", "600:601", "0:1", 180, FEW, FEW, FEW, FEW, 2, " --steps 3")

SHORT = "world --out {out}/films --seconds 120 --seeds {short}"
# Digits that are rare in training are not copied, and counting is learned from many goals: both games are long, and drills have
# a goal every two seconds.
PRACTICE = "world --out {out}/films --seconds 240 --rules practice --seeds {practice}"
DRILL = "world --out {out}/films --seconds 240 --rules drill"
LONG = "world --out {out}/films --seconds {seconds} --seeds {long}"
TEXT = "world --out {out}/text --words-only"
SELDOM = 0.05  # questions a second; more of them, and their answers remind of the score
FILMS = "{out}/films/goals4.jsonl {out}/films/drill4.jsonl {out}/films/long.jsonl"
WORDS = "windows {} --words-only --as-streamed --out {{out}}/{}.jsonl --window {} --stride {}"
ALL = " ".join(f"{{out}}/text/{name}.jsonl" for name in ("match", "asked", "practice", "drill"))
HOURS_OF_STAGE = 0.45  # of a stage from the seventh on
LAST_STAGE = 6  # the stage that can be repeated
FLOAT32 = 3  # stages whose weights stay so; the others are bfloat16, as a stream computes them


def train_and_convert(stage: int, *windows: str) -> tuple[Step, Step]:
    """OUT/STAGE from OUT/(STAGE - 1) and windows of these names."""
    paths = " ".join(f"{{out}}/{name}.jsonl" for name in windows)
    train = f"train --config touchline_stage{min(stage, LAST_STAGE)} --model {{out}}/{stage - 1} --run-dir {{out}}/stage{stage}"
    train += f" --seed {max(stage - LAST_STAGE, 0)} --data.paths {paths} --data.root {{out}}/films{{training}}"
    dtype = "" if stage <= FLOAT32 else " --dtype bfloat16"
    return Step(f"{stage}", train), Step(f"{stage}", f"convert {{out}}/stage{stage} {{out}}/{stage}{dtype}")


def extra_stage(stage: int, games: int) -> tuple[Step, ...]:
    """A stage from the sixth on: games that were not told before."""
    seed, games_file, text, far = 5000 + 1000 * stage, f"text/{stage}.jsonl", f"text_{stage}", f"far_{stage}"
    make_games = f"{TEXT} --seconds 1200 --seeds {seed}:{seed + games} --index {stage}.jsonl --questions {SELDOM}"
    return (
        Step(games_file, make_games),
        Step(f"{text}.jsonl", WORDS.format(f"{{out}}/{games_file}", text, 16, 16) + " --every 6"),
        Step(f"{far}.jsonl", WORDS.format(f"{{out}}/{games_file}", far, 24, 12) + " --saying [0-9]-[0-9] --apart 40"),
        *train_and_convert(stage, "shown", "begin", text, far),
    )


STEPS = (
    Step("films/see.jsonl", f"{SHORT} --index see.jsonl --questions 1 --ask ball --keep"),
    Step("films/count.jsonl", f"{PRACTICE} --index count.jsonl --questions 1 --keep"),
    Step("films/drill.jsonl", f"{DRILL} --seeds {{drills}} --index drill.jsonl --questions 0.5 --keep"),
    Step("films/read.jsonl", f"{PRACTICE} --index read.jsonl --questions 1 --ask score cup --words-only"),
    Step("0", "scratch {out}/films/see.jsonl {out}/films/count.jsonl --out {out}/0 --family {family}"),
    Step("see.jsonl", "windows {out}/films/see.jsonl {out}/films/read.jsonl --out {out}/see.jsonl --window 2 --stride 2"),
    *train_and_convert(1, "see"),
    Step(
        "count.jsonl",
        "windows {out}/films/count.jsonl {out}/films/drill.jsonl --out {out}/count.jsonl --window 4 --stride 4",
    ),
    *train_and_convert(2, "count"),
    Step("films/short.jsonl", f"{SHORT} --index short.jsonl --questions 0.2 --words-only"),
    Step("films/goals.jsonl", f"{PRACTICE} --index goals.jsonl --questions 0.3 --words-only"),
    Step(
        "follow.jsonl",
        "windows {out}/films/short.jsonl {out}/films/goals.jsonl --out {out}/follow.jsonl --window 8 --stride 4"
        " --saying [0-9]-[0-9]",
    ),
    *train_and_convert(3, "follow"),
    Step("films/long.jsonl", f"{LONG} --index long.jsonl --questions {SELDOM} --keep"),
    Step("films/short4.jsonl", f"{SHORT} --index short4.jsonl --questions {SELDOM} --words-only"),
    Step("films/goals4.jsonl", f"{PRACTICE} --index goals4.jsonl --questions {SELDOM} --words-only"),
    Step("films/drill4.jsonl", f"{DRILL} --seeds {{drills_again}} --index drill4.jsonl --questions {SELDOM} --words-only"),
    Step("remember.jsonl", f"windows {{out}}/films/short4.jsonl {FILMS} --out {{out}}/remember.jsonl --as-streamed"),
    Step(
        "begin4.jsonl",
        f"windows {{out}}/films/short4.jsonl {FILMS} --out {{out}}/begin4.jsonl --as-streamed --saying Home:|Welcome",
    ),
    *train_and_convert(4, "remember", "begin4"),
    Step("films/short5.jsonl", f"{SHORT} --index short5.jsonl --questions 0.2 --words-only"),
    Step("stream.jsonl", f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/stream.jsonl --as-streamed"),
    Step(
        "begin.jsonl",
        f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/begin.jsonl --as-streamed --saying Home:|Welcome|Foul",
    ),
    Step("text/match.jsonl", f"{TEXT} --seconds 1200 --seeds {{text_games}} --index match.jsonl"),
    Step("text/asked.jsonl", f"{TEXT} --seconds 1200 --seeds {{text_asked}} --index asked.jsonl --questions {SELDOM}"),
    Step("text/practice.jsonl", f"{TEXT} --seconds 600 --seeds {{text_practice}} --rules practice --index practice.jsonl"),
    Step("text/drill.jsonl", f"{TEXT} --seconds 600 --seeds {{text_drills}} --rules drill --index drill.jsonl"),
    Step("text24.jsonl", WORDS.format(ALL, "text24", 24, 24) + " --every 6"),
    Step("text52.jsonl", WORDS.format(ALL, "text52", 52, 52) + " --every 3"),
    *train_and_convert(5, "stream", "begin", "text24", "text52"),
    Step(
        "shown.jsonl",
        f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/shown.jsonl --as-streamed"
        " --window 16 --stride 8 --visible-seconds 8",
    ),
)


def steps(stages: int, amount: Amount) -> tuple[Step, ...]:
    """All of them, in order; more than six stages repeat the last with games that were not seen before."""
    return *STEPS, *(step for stage in range(LAST_STAGE, stages + 1) for step in extra_stage(stage, amount.new_games))


def plan(out: Path, todo: tuple[Step, ...], quick: bool) -> str:
    """What is about to be done, in one line."""
    left = [step for step in todo if not (out / step.result).exists()]
    extra = sum(step.command.startswith("train ") for step in todo) - LAST_STAGE
    time = "some minutes" if quick else f"about {2 + extra * HOURS_OF_STAGE:.1f} hours" if extra > 0 else "about two hours"
    disk = "some MB" if quick else "1 to 2 GB"
    done = "" if len(left) == len(todo) else f"; {len(todo) - len(left)} are done"
    return f"{len(todo)} steps in {out}{done}: {time} in all on two CPU cores, {disk}; after a stop the same command goes on"
