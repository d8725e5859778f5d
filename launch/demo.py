"""A first look, with nothing downloaded: makes a clip and streams it through the small model of the tests.

That model has random weights (it exists to check numbers), so its words mean nothing yet; what runs is the real path: mp4 ->
frames -> patches -> vision tower -> decoder with its ring of slots -> words, second by second.
"""

import tempfile
from pathlib import Path

import numpy as np

from launch.cli import run

DATA = Path(__file__).parent.parent / "tests" / "data"
FPS, SECONDS, HEIGHT, WIDTH = 10, 12, 112, 168


def clip(seconds: int, height: int, width: int, fps: int = FPS) -> np.ndarray:
    """A white ball that crosses a green pitch, uint8 [F, H, W, 3] at `fps` frames a second."""
    frames = np.empty((fps * seconds, height, width, 3), np.uint8)
    frames[:] = (40, 130, 60)
    frames[:, :, width // 2 - 1 : width // 2 + 1] = 230
    row, column = np.mgrid[:height, :width]
    for number, frame in enumerate(frames):
        share = number / (len(frames) - 1)
        y, x = height * (0.5 + 0.3 * np.sin(6 * share)), width * (0.1 + 0.8 * share)
        frame[(row - y) ** 2 + (column - x) ** 2 < (height / 12) ** 2] = 255
    return frames


def main() -> None:
    from svlm_jax import from_pretrained
    from svlm_jax.config import StreamConfig
    from svlm_jax.data.video import write_video

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pitch.mp4"
        write_video(path, clip(SECONDS, HEIGHT, WIDTH), FPS)
        print(f"made {path.name}: {SECONDS} s, {WIDTH} x {HEIGHT}, {path.stat().st_size / 1000:.1f} kB")
        vlm = from_pretrained(DATA / "models" / "tiny", processor=DATA / "processor")
        size = sum(value.size for value in vlm.parameters.values())
        print(f"model: {size / 1e3:.0f} thousand random parameters, {vlm.model.config.dtype}")
        windows = StreamConfig(vision_window=4, text_rounds=4, sink=16, slide=16)
        print(f"watching, with windows of {windows.vision_window} s of frames and {windows.text_rounds} replies")
        spent = []
        for reply in vlm.watch(path, query="Commentate on this match", config=windows):
            spent.append(sum(reply.ms.values()))
            words = "".join(one if one.isprintable() else " " for one in reply.text)
            print(f"{reply.start:4.0f} s  {spent[-1]:6.0f} ms  {reply.after:3d} slots  {words}", flush=True)
    steady = sum(spent[1:]) / len(spent[1:])
    print(f"first chunk with compilation; then {steady:.0f} ms a chunk, {1000 / steady:.0f} times real time")
    print("random weights, so random words; next: python -m launch.stream FILE --model Qwen/Qwen2.5-VL-3B-Instruct")


if __name__ == "__main__":
    run(main)
