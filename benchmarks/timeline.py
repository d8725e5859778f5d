"""A picture of where a second goes: what the host and the device do in a chunk, drawn from docs/timeline.json.

Units: milliseconds in the data, pixels in the drawing.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

STAGES = {  # stage -> (colour, what it is)
    "pixels": ("#e69f00", "frames to patches"),
    "plan": ("#d55e00", "eviction, positions, tables"),
    "dispatch": ("#cc79a7", "dispatch"),
    "vision": ("#56b4e9", "vision tower"),
    "prefill": ("#009e73", "prefill"),
    "decode": ("#0072b2", "reply, token by token"),
    "wait": ("#eeeeee", "waits for the device"),
}
LEFT, WIDTH, BAR, GAP, TITLE = 70, 800, 26, 8, 26
MIN_LABEL = 24  # pixels of a bar that has room for its number


def draw(data: Path, target: Path) -> None:
    timelines = json.loads(data.read_text())["timelines"]
    scale = WIDTH / max(line["total"] for line in timelines)
    parts, y = [], 10
    for line in timelines:
        parts.append(_text(LEFT, y + 14, line["title"], weight="bold"))
        y += TITLE
        for lane, bars in line["lanes"].items():
            parts.append(_text(LEFT - 10, y + 18, lane, anchor="end"))
            parts += [shape for bar in bars for shape in _bar(bar, y, scale)]
            y += BAR + GAP
        end = LEFT + line["total"] * scale
        parts.append(f'<path d="M{end:.1f} {y - 2 * (BAR + GAP)}V{y}" stroke="#333" stroke-dasharray="3"/>')
        parts.append(_text(end - 4, y + 10, f"{line['total']} ms", anchor="end"))
        y += 30
    x = LEFT
    for colour, name in STAGES.values():
        parts += [f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>', _text(x + 17, y + 10, name, size=11)]
        x += 32 + 5.4 * len(name)
    size = f'width="{LEFT + WIDTH + 20}" height="{y + 24}"'
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, sans-serif"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    target.write_text("\n".join([f"<svg {size} {style}>", background, *parts, "</svg>"]) + "\n")


def _bar(bar: dict[str, Any], y: float, scale: float) -> list[str]:
    x, width = LEFT + bar["start"] * scale, bar["ms"] * scale
    colour, name = STAGES[bar["stage"]]
    # A hairline of white, so that two dispatches in a row are seen as two.
    rect = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}" stroke="#fff"'
    shapes = [f"{rect}><title>{escape(name)}: {bar['ms']:g} ms</title></rect>"]
    if width >= MIN_LABEL and bar["stage"] != "wait":
        shapes.append(_text(x + width / 2, y + 18, f"{bar['ms']:g}", anchor="middle", fill="#fff"))
    return shapes


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", fill="#222") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f"<text {attributes}>{escape(text)}</text>"
