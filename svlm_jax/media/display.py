"""From a decoded frame to the pixels that a player displays: upright, opaque, deinterlaced.

Owns orientation, transparency and deinterlacing. numpy and PIL; PyAV inside the function that needs it. Pixels count as square.
Axes: H, W pixels · 3 channels R, G, B, values 0..255.
"""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from svlm_jax.media.image import on_white

if TYPE_CHECKING:
    import av
    from av.filter import Graph

MIN_FIELD_ROWS = 4  # below it there are no fields to tell apart


class Orientation(NamedTuple):
    """What is done to stored pixels, in this sequence: exchange rows and columns, left and right, top and bottom."""

    transpose: bool
    flip_columns: bool
    flip_rows: bool


class FrameContext(NamedTuple):
    """A frame with its neighbours in time, which deinterlacing looks at; None where they are not known. orientation: of the
    frame, if the caller knows it."""

    frame: "av.VideoFrame"
    previous: "av.VideoFrame | None" = None
    following: "av.VideoFrame | None" = None
    orientation: Orientation | None = None


def orientation(frame: "av.VideoFrame") -> Orientation:
    """By the frame's display matrix: mirrored or not, and turned by quarters; other angles go to the nearest of the eight."""
    try:
        matrix = np.frombuffer(bytes(_side_data(frame)["DISPLAYMATRIX"]), np.int32)
    except KeyError:
        return Orientation(False, False, False)
    a, b, c, d = (float(matrix[index]) for index in (0, 1, 3, 4))  # displayed x = a x + c y, displayed y = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _side_data(frame: "av.VideoFrame") -> Any:
    """What a frame carries beside its pixels, by the names of its kinds."""
    from av.sidedata.sidedata import SideDataContainer

    while True:
        try:
            # not `frame.side_data`: the frame would hold what holds the frame, and its pixels and decoder would stay in memory
            # until the next look for cycles
            return SideDataContainer(frame)  # pyright: ignore[reportCallIssue]
        except ValueError as error:  # one kind that PyAV has no name for (EXIF of JPEG, views of stereo video) hides all others
            number = re.match(r"\d+", str(error))
            if number is None:
                raise
            frame = _filtered(frame, "sidedata", f"mode=delete:type={number[0]}")


def _filtered(frame: "av.VideoFrame", name: str, arguments: str) -> "av.VideoFrame":
    graph = _graph(frame, name, arguments)
    graph.vpush(frame)
    return graph.vpull()


def _graph(frame: "av.VideoFrame", name: str, arguments: str) -> "Graph":
    """One filter for frames like this one."""
    from av.filter import Graph

    graph = Graph()
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
    source = graph.add("buffer", f"{size}:time_base=1/1000:pixel_aspect=1/1")
    graph.link_nodes(source, graph.add(name, arguments), graph.add("buffersink")).configure()
    return graph


def display_size(frame: "av.VideoFrame", known: Orientation | None = None) -> tuple[int, int]:
    """(width, height) as displayed. known: the frame's orientation, if the caller knows it."""
    return (frame.height, frame.width) if (known or orientation(frame)).transpose else (frame.width, frame.height)


def to_rgb(context: FrameContext, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of that (width, height) as displayed; what is transparent lies on white, as `load_image` has it."""
    frame = context.frame
    transpose, flip_columns, flip_rows = context.orientation or orientation(frame)
    if frame.interlaced_frame and frame.height >= MIN_FIELD_ROWS:
        frame = _deinterlaced(context)
    width, height = (size[1], size[0]) if transpose else size
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        image = on_white(frame.to_ndarray(format="rgba", width=width, height=height))
    else:
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
    image = image.transpose(1, 0, 2) if transpose else image
    image = image[:, ::-1] if flip_columns else image
    image = image[::-1] if flip_rows else image
    return np.ascontiguousarray(image)


def _deinterlaced(context: FrameContext) -> "av.VideoFrame":
    """The frame at the time of its first field. Only frames that are converted go through here: each has its own filter."""
    frame = context.frame
    kind = (frame.width, frame.height, frame.format.name)
    all_frames = (frame, context.previous, context.following)
    near = [other for other in all_frames if other is not None and (other.width, other.height, other.format.name) == kind]
    near.sort(key=lambda other: (other is context.following) - (other is context.previous))  # in order of time
    graph = _graph(frame, "bwdif", "mode=send_frame:deint=interlaced")
    for other in [*near, None]:  # None flushes the filter
        graph.vpush(other)
    outputs = []
    while len(outputs) < len(near):
        outputs.append(graph.vpull())
    return outputs[near.index(frame)]
