"""From a decoded frame to the picture that a player shows: upright, opaque, without the comb of interlaced material.

Owns orientation, transparency and deinterlacing. numpy and PIL; PyAV inside the function that needs it. Pixels count as square.
Axes: H, W pixels · 3 channels R, G, B, levels 0..255.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from svlm_jax.media.image import on_white

if TYPE_CHECKING:
    import av

LOWEST = 4  # rows below which there are no fields to tell apart


class Orientation(NamedTuple):
    """What is done to a stored picture, in this order: exchange rows and columns, left and right, top and bottom."""

    transpose: bool
    flip_columns: bool
    flip_rows: bool


class Shown(NamedTuple):
    """A frame with its neighbours in time, which deinterlacing looks at; None where they are not known."""

    frame: "av.VideoFrame"
    before: "av.VideoFrame | None" = None
    after: "av.VideoFrame | None" = None


def orientation(frame: "av.VideoFrame") -> Orientation:
    """By the frame's display matrix: mirrored or not, and turned by quarters; other angles go to the nearest of the eight."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)  # pyright: ignore[reportGeneralTypeIssues]
    except KeyError:
        return Orientation(False, False, False)
    a, b, c, d = (float(matrix[at]) for at in (0, 1, 3, 4))  # shown x = a x + c y, shown y = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def shown_size(frame: "av.VideoFrame") -> tuple[int, int]:
    """(width, height) as shown."""
    return (frame.height, frame.width) if orientation(frame).transpose else (frame.width, frame.height)


def picture(shown: Shown, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of that (width, height) as shown; what is transparent lies on white, as `load_image` has it."""
    frame, (transpose, flip_columns, flip_rows) = shown.frame, orientation(shown.frame)
    if frame.interlaced_frame and frame.height >= LOWEST:
        frame = _deinterlaced(shown)
    width, height = (size[1], size[0]) if transpose else size
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        image = on_white(frame.to_ndarray(format="rgba", width=width, height=height))
    else:
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
    image = image.transpose(1, 0, 2) if transpose else image
    image = image[:, ::-1] if flip_columns else image
    image = image[::-1] if flip_rows else image
    return np.ascontiguousarray(image)


def _deinterlaced(shown: Shown) -> "av.VideoFrame":
    """The frame at the time of its first field. Only pictures that are looked at go through here: each has its own filter."""
    from av.filter import Graph

    frame = shown.frame
    kind = (frame.width, frame.height, frame.format.name)
    near = [one for one in shown if one is not None and (one.width, one.height, one.format.name) == kind]
    near.sort(key=lambda one: (one is shown.after) - (one is shown.before))
    graph = Graph()
    first = graph.add("buffer", f"video_size={kind[0]}x{kind[1]}:pix_fmt={kind[2]}:time_base=1/1000:pixel_aspect=1/1")
    filtered = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(first, filtered, graph.add("buffersink")).configure()
    for one in [*near, None]:
        graph.vpush(one)
    results = []
    while len(results) < len(near):
        results.append(graph.vpull())
    return results[near.index(frame)]
