#!/usr/bin/env python3
"""The drawings of the documentation, in the colours of their page: ``python docs/understand/draw.py``.

They are narrow, so that a phone shows them in full size.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent / "drawings"
WIDTH = 420
# The page's own colours, light or dark; others where a drawing is looked at alone.
STYLE = (
    ".drawing{font:13px sans-serif;max-width:28rem;width:100%;display:block;margin:1rem auto}"
    ".drawing text{fill:var(--color-foreground-primary,#777)}"
    ".drawing .small{font-size:11.5px;fill:var(--color-foreground-secondary,#777)}"
    ".drawing .code{font-family:monospace}"
    ".drawing .line{stroke:var(--color-foreground-secondary,#777);fill:none;stroke-width:1.4}"
    ".drawing .dash{stroke:var(--color-foreground-secondary,#777);fill:none;stroke-dasharray:4 4}"
    ".drawing .a{fill:#3b82f6;fill-opacity:.25;stroke:#3b82f6;stroke-width:1.6}"
    ".drawing .b{fill:#e07b39;fill-opacity:.3;stroke:#e07b39;stroke-width:1.6}"
    ".drawing .c{fill:#2f9e6e;fill-opacity:.3;stroke:#2f9e6e;stroke-width:1.6}"
    ".drawing .none{fill:var(--color-background-secondary,#eee);stroke:var(--color-foreground-muted,#999)}"
)


class Drawing:
    """One drawing: shapes and words are added, then it is written."""

    def __init__(self, name: str, height: int, title: str) -> None:
        self.name, self.height, self.title = name, height, title
        self.parts: list[str] = []

    def box(  # noqa: PLR0913, PLR0917  as SVG has them
        self, x: float, y: float, width: float, height: float, kind: str = "line", rx: float = 0
    ) -> None:
        """Add a rectangle."""
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{rx}"/>'
        )

    def line(self, *points: tuple[float, float], kind: str = "line", arrow: bool = True) -> None:
        """Add a line through points, with a head at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        end = f' marker-end="url(#{self.name}-head)"' if arrow else ""
        self.parts.append(f'<polyline class="{kind}" points="{path}"{end}/>')

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Add words."""
        which = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{which} x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>')

    def write(self) -> None:
        """Keep it as a file."""
        grey = "fill:var(--color-foreground-secondary,#777)"
        head = (
            f'<defs><marker id="{self.name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" style="{grey}"/></marker></defs>'
        )
        begin = (
            '<svg class="drawing" xmlns="http://www.w3.org/2000/svg" role="img" '
            f'viewBox="0 0 {WIDTH} {self.height}" aria-label="{escape(self.title)}">'
        )
        lines = [begin, f"<style>{STYLE}</style>", head, *self.parts, "</svg>\n"]
        HERE.mkdir(exist_ok=True)
        (HERE / f"{self.name}.svg").write_text("\n".join(lines))


def draw_rows() -> None:
    """Draw batches in any order, the list, and one array a head."""
    it = Drawing(
        "rows", 250, "Batches come in any order; each row goes to its place in the canonical list; gaps stay"
    )
    it.text(10, 18, "batches, as they come")
    it.text(160, 18, "full_output_locs", "code")
    it.text(300, 18, 'batch["mask"]', "code")
    for number, (kind, rows) in enumerate((("a", (3, 4)), ("b", (6, 0)), ("c", (1, 7)))):
        for place, row in enumerate(rows):
            y = 36 + number * 66 + place * 24
            it.box(12, y, 62, 20, kind)
            it.text(20, y + 15, f"patch {row}", "small")
            it.line((78, y + 10), (154, 46 + row * 24), kind="line")
    came = {3: "a", 4: "a", 6: "b", 0: "b", 1: "c", 7: "c"}
    for row in range(8):
        y = 36 + row * 24
        it.box(160, y, 118, 20, "line")
        it.text(168, y + 15, f"[{row % 4 * 64}, {row // 4 * 64}, …]", "small code")
        it.box(300, y, 62, 20, came.get(row, "none"))
        it.text(370, y + 15, "True" if row in came else "False", "small code")
    it.text(366, 246, "written", "small code")
    it.write()


def draw_box() -> None:
    """Draw a box, which is its patch."""
    it = Drawing("box", 210, "A box is two corners, x first; its patch is an array of the same size, y first")
    it.line((30, 24), (400, 24))
    it.text(404, 20, "x", "small", "end")
    it.line((30, 24), (30, 196))
    it.text(14, 196, "y", "small")
    it.box(90, 60, 130, 90, "a")
    it.text(155, 100, "box = patch", anchor="middle")
    it.text(155, 118, "(n, h, w, C)", "small code", "middle")
    it.line((90, 24), (90, 60), kind="dash", arrow=False)
    it.line((30, 60), (90, 60), kind="dash", arrow=False)
    it.text(92, 20, "start_x", "small code", "middle")
    it.text(34, 56, "start_y", "small code")
    it.line((220, 24), (220, 60), kind="dash", arrow=False)
    it.line((30, 150), (90, 150), kind="dash", arrow=False)
    it.text(222, 20, "end_x", "small code", "middle")
    it.text(34, 166, "end_y", "small code")
    it.text(238, 86, "[start_x, start_y,", "small code")
    it.text(238, 102, " end_x, end_y]", "small code")
    it.text(238, 128, "the map: (H, W, C)", "small")
    it.write()


def draw_grid() -> None:
    """Draw overlap, and the two borders."""
    it = Drawing(
        "grid", 230, "The last box is moved in with border shift, and reaches over the end with border over"
    )
    for top, name, starts in (
        (40, 'border="shift"', (20, 112, 204, 240)),
        (142, 'border="over"', (20, 112, 204, 296)),
    ):
        it.text(20, top - 12, name, "code")
        it.box(20, top, 320, 44, "line")
        for number, x in enumerate(starts):
            it.box(x, top + 5 + 9 * (number % 2), 100, 24, "ab"[number % 2])
        it.text(
            20,
            top + 60,
            "8 px shared" if top == 40 else "8 px shared; pad what is read beyond the image",
            "small",
        )
    it.text(336, 34, "image", "small", "end")
    it.line((340, 20), (340, 216), kind="dash", arrow=False)
    it.write()


def draw_halo() -> None:
    """Draw a patch that is larger than its box."""
    it = Drawing("halo", 230, "With a halo the patch is larger than its box: crop cuts it away on each side")
    it.box(30, 24, 180, 180, "b")
    it.box(72, 66, 96, 96, "a")
    it.text(120, 44, "patch: what the model sees", "small", "middle")
    it.text(120, 110, "box: what", anchor="middle")
    it.text(120, 128, "counts", anchor="middle")
    it.line((72, 180), (32, 180))
    it.line((32, 180), (72, 180))
    it.text(52, 198, "46", "small code", "middle")
    it.text(232, 70, 'crop="center"', "code")
    it.text(232, 88, "or crop=46", "code")
    it.text(232, 116, "boxes of 164 px,", "small")
    it.text(232, 132, "patches of 256 px", "small")
    it.write()


def draw_scale() -> None:
    """Draw boxes in the pixels of another level."""
    it = Drawing(
        "scale", 200, "Boxes in pixels of level 0, and a map of a quarter of them: scale is a quarter"
    )
    it.box(20, 40, 170, 130, "line")
    it.box(50, 64, 96, 64, "a")
    it.text(98, 92, "1024 units", "small", "middle")
    it.text(98, 108, "of level 0", "small", "middle")
    it.text(20, 28, "locations", "code")
    it.line((200, 105), (262, 105))
    it.text(231, 95, "1/4", "code", "middle")
    it.box(276, 72, 86, 66, "line")
    it.box(291, 84, 48, 32, "a")
    it.text(276, 62, "the map", "code")
    it.text(319, 156, "the patch has 256 px", "small", "middle")
    it.text(205, 192, "scale=1/4: pixels of the map a unit of the locations", "small", "middle")
    it.write()


def draw_origin() -> None:
    """Draw a region of a slide."""
    it = Drawing(
        "origin", 230, "origin is the location of the map's first pixel, output_shape how large the map is"
    )
    it.box(20, 20, 290, 170, "line")
    it.text(304, 38, "slide", "small", "end")
    for number in range(6):
        it.box(96 + 60 * (number % 3), 56 + 60 * (number // 3), 54, 54, "a")
    it.box(116, 70, 150, 92, "c")
    it.line((20, 20), (115, 69))
    it.text(60, 62, "origin", "code", "middle")
    it.text(191, 121, "map", "", "middle")
    it.text(191, 186, "output_shape", "small code", "middle")
    it.text(322, 96, "boxes are cut", "small")
    it.text(322, 112, "where it ends", "small")
    it.text(20, 216, "origin in the unit of the boxes, output_shape in pixels of the map", "small")
    it.write()


def draw_channels() -> None:
    """Draw channels last, and first."""
    it = Drawing(
        "channels",
        190,
        "Patches have channels last; channels_first says that they come before height and width",
    )
    it.text(20, 24, "(n, h, w, C)", "code")
    it.text(20, 40, "as NumPy, Keras, zarr", "small")
    for step in range(3):
        it.box(30 + 12 * step, 60 + 12 * step, 90, 70, "abc"[step])
    it.text(230, 24, "(n, C, h, w)", "code")
    it.text(230, 40, "as PyTorch, MONAI", "small")
    for step in range(3):
        it.box(236 + 62 * step, 70, 52, 52, "abc"[step])
    it.text(230, 150, "channels_first=True", "code")
    it.text(230, 170, "the map is (H, W, C) all the same", "small")
    it.write()


def draw_which() -> None:
    """Draw which class to take."""
    it = Drawing(
        "which",
        400,
        "Only the map: Stitcher. Rows of patches too: FullBatchAccumulator, and stitch for a map",
    )
    questions = (
        (
            ("What the model said of each", "patch: is it wanted later?"),
            "no, only the map",
            "Stitcher",
            "keeps no patch",
        ),
        (
            ("Must it survive a kill, or do", "several processes predict?"),
            "no",
            "FullBatchAccumulator",
            "RAM, or disk",
        ),
    )
    for number, (words, no, name, short) in enumerate(questions):
        y = 10 + 130 * number
        it.box(10, y, 200, 62, "line", 12)
        for line, each in enumerate(words):
            it.text(110, y + 27 + 17 * line, each, "", "middle")
        it.line((210, y + 31), (236, y + 31), arrow=False)
        it.text(214, y + 22, no, "small")
        it.line((236, y + 31), (236, y + 58), (250, y + 58))
        it.box(252, y + 34, 164, 48, "a", 4)
        it.text(334, y + 54, name, "code", "middle")
        it.text(334, y + 71, short, "small", "middle")
        it.line((110, y + 62), (110, y + 128))
        it.text(118, y + 100, "yes", "small")
    it.box(10, 270, 200, 82, "a", 4)
    it.text(110, 290, "FullBatchAccumulator", "code", "middle")
    it.text(110, 308, 'store=, mode="a"', "small code", "middle")
    it.text(110, 325, "rank=, world_size=,", "small code", "middle")
    it.text(110, 342, "and then publish()", "small", "middle")
    it.line((334, 222), (334, 300))
    it.line((210, 320), (250, 320))
    it.box(252, 302, 164, 48, "c", 4)
    it.text(334, 322, "stitch(batch)", "code", "middle")
    it.text(334, 339, "a map, then or later", "small", "middle")
    it.text(10, 385, "The list that all begin with: grid_locations(shape, patch)", "small")
    it.write()


def main() -> None:
    """Draw all of them."""
    for name, function in list(globals().items()):
        if name.startswith("draw_"):
            function()


if __name__ == "__main__":
    main()
