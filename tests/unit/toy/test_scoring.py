"""Scores of drawn views."""

import pytest
import torch

from invert3d_core.cameras import fit_radius
from invert3d_core.mvdream import ModelInfo
from invert3d_core.toy import scoring


def test_cameras_are_a_set_around_a_unit_sphere_that_no_bank_holds():
    info = ModelInfo(image_size=128, latent_size=16, fov_y_deg=30.0, fill=0.8)
    cams = scoring.scoring_cameras(info)
    assert (len(cams), cams.width, cams.height) == (4, 128, 128)
    assert cams.centers.norm(dim=1) == pytest.approx(fit_radius(1.0, 30.0, 128, 128, 0.8))
    assert cams.fov_y_deg.tolist() == [30.0] * 4


def test_scores_by_hand():
    truth = torch.ones(2, 1, 4, 4, 3)
    truth[:, :, :2, :2] = 0.5  # four pixels of object
    drawn = truth.clone()
    drawn[1, :, :2, :2] = 0.6
    wrong = truth.clone()
    wrong[:, :, :2, :2] = 0.4
    wrong[1, :, 2:, 2:] = 0.5  # as many again where nothing is
    psnr, iou = scoring.scores(torch.stack([drawn, wrong]), truth)
    assert psnr[0] == torch.inf  # one of its noises is perfect
    right, astray = 20.0, -10 * torch.log10(torch.tensor((4 * 0.01 + 4 * 0.25) / 8))
    assert float(psnr[1]) == pytest.approx(float((right + astray) / 2), abs=1e-4)
    assert iou.tolist() == pytest.approx([1.0, (1 + 0.5) / 2])
