"""Pictures on disk: PNG files, and contact sheets with captions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TRANSFORMS = "transforms.json"  # the cameras of a folder of views: `render` leaves it beside them, `lift` reads it
MARGIN, LABEL_WIDTH = 12, 250
TITLE_SIZE, TEXT_SIZE = 17, 14
INK, FAINT, PAPER = (24, 24, 24), (104, 104, 104), (255, 255, 255)


@dataclass(frozen=True)
class SheetRow:
    """A row of a contact sheet: a title and a line of detail at the left, then pictures (C,H,W,3) in [0,1]."""

    title: str
    detail: str
    pictures: "Tensor"


def to_pil(picture: "Tensor") -> Any:  # (H,W,3) or (H,W,4)
    """A picture in [0,1] as Pillow has it."""
    import torch
    from PIL import Image

    values = picture.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(values.contiguous().numpy())


def save_picture(path: Path, picture: Any) -> None:
    """Write a Pillow picture, whole or not at all. Raises StorageError where that cannot be done."""
    from ..files import write_atomically

    data = io.BytesIO()
    picture.save(data, path.suffix[1:])
    write_atomically(path, data.getvalue(), durable=False)


def save_views(folder: Path, pictures: "Tensor") -> list[Path]:
    """Write pictures (C,H,W,3|4) as view_000.png and so on; returns their paths."""
    paths = [folder / f"view_{index:03d}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        save_picture(path, to_pil(picture))
    return paths


def save_sheet(path: Path, rows: Sequence[SheetRow], headings: Sequence[str] = (), cell: int = 176) -> None:
    """Write a contact sheet: rows of pictures with their titles, and headings above the columns.

    cell: width of a column in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    title_font, text_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(TEXT_SIZE)
    columns = max(len(row.pictures) for row in rows)
    heights = [round(cell * row.pictures.shape[1] / row.pictures.shape[2]) for row in rows]
    top = MARGIN + (TEXT_SIZE + MARGIN if headings else 0)
    whole = (MARGIN * 2 + LABEL_WIDTH + columns * cell, top + sum(heights) + MARGIN * len(rows))
    sheet = Image.new("RGB", whole, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        x = MARGIN + LABEL_WIDTH + (column + 0.5) * cell
        draw.text((x, MARGIN), heading, FAINT, text_font, anchor="ma")
    y = top
    for row, height in zip(rows, heights, strict=True):
        text_y = y + MARGIN
        for text, font, size, ink in (
            (row.title, title_font, TITLE_SIZE, INK),
            (row.detail, text_font, TEXT_SIZE, FAINT),
        ):
            for line in _wrapped(text, font, LABEL_WIDTH - MARGIN):
                draw.text((MARGIN, text_y), line, ink, font)
                text_y += round(size * 1.3)
            text_y += MARGIN // 2
        for column, picture in enumerate(row.pictures):
            tile = to_pil(picture).resize((cell, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (MARGIN + LABEL_WIDTH + column * cell, y))
        y += height + MARGIN
    save_picture(path, sheet)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than width pixels, broken between words, and inside a word that is wider than that alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width:
            fitting = next(n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width)
            lines.append(word[:fitting])
            word = word[fitting:]
        lines.append(word)
    return lines
