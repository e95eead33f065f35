"""Contact sheets and PNG files."""

import numpy as np
import torch
from PIL import Image

from invert3d_core.cli.pictures import LABEL_WIDTH, MARGIN, SheetRow, save_sheet, save_views

RED, BLUE = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])


def views(color: torch.Tensor, count: int, height: int = 20, width: int = 20) -> torch.Tensor:
    return color.expand(count, height, width, 3)


def test_a_sheet_has_its_pictures_and_words_where_they_belong(tmp_path):
    rows = [SheetRow("first", "a detail", views(RED, 3)), SheetRow("second", "", views(BLUE, 2, height=10))]
    save_sheet(tmp_path / "sheet.png", rows, cell=60)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    left = MARGIN + LABEL_WIDTH
    assert sheet.shape == (MARGIN * 3 + 60 + 30, left + 3 * 60 + MARGIN, 3)
    assert (sheet[MARGIN : MARGIN + 60, left : left + 180] == [255, 0, 0]).all()
    second = MARGIN * 2 + 60
    assert (sheet[second : second + 30, left : left + 120] == [0, 0, 255]).all()
    assert (sheet[second:, left + 120 :] == 255).all()  # no third picture
    label = sheet[:, :left]
    assert (label[:second] < 128).any()
    assert (label[second:] < 128).any()


def test_long_titles_are_broken_not_cut(tmp_path):
    long = "a " + "very " * 30 + "x" * 90
    save_sheet(tmp_path / "sheet.png", [SheetRow(long, "", views(RED, 1))], headings=["here"], cell=400)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    margin = sheet[:, LABEL_WIDTH + 1 : LABEL_WIDTH + MARGIN]
    assert (margin == 255).all()
    lines = (sheet[:, :LABEL_WIDTH] < 128).any((1, 2))
    assert (np.diff(lines.astype(int)) == 1).sum() >= 5


def test_views_keep_their_values(tmp_path):
    picture = torch.rand(2, 5, 7, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    first, second = save_views(tmp_path, picture)
    assert (first.name, second.name) == ("view_000.png", "view_001.png")
    stored = np.asarray(Image.open(second))
    assert stored.shape == (5, 7, 4)
    assert np.abs(stored / 255 - picture[1].clamp(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6
