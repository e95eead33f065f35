"""Train the built-in toy model: a resumable script that can work in slices.

    python tools/train_toy.py warm --part vae --folder RUN & ... --part unet & ... --part flat &
    python tools/train_toy.py draw --folder RUN --assets 220000 --processes 30
    torchrun --standalone --virtual-local-rank --nproc_per_node 2 tools/train_toy.py train --folder RUN --stop-after 540
    python tools/train_toy.py classifier --folder RUN

``draw`` makes the training pool with CPU processes, one file for each GPU; ``warm`` compiles meanwhile. ``train`` goes
on where the folder's last slice stopped (pictures and VAE, latents, U-Net), stops in time and writes its result to
``RUN/export``. With the virtual local rank every process calls its GPU the first one, as ``warm`` does; else the
compiler's cache would serve one of them only. ``classifier`` trains the reader that ``benchmarks/toy_text.py`` scores
with. ``tools/train_toy.sh`` runs all of it, a slice a call. With CUDA GPUs and gsplat it is a matter of half an hour;
on a CPU the same commands run with small numbers, as a trial.
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core.metrics import foreground_psnr
from invert3d_core.toy.assets import draw, held_out_color
from invert3d_core.toy.colors import NAMES
from invert3d_core.toy.families import HELD_OUT, KNOWN
from tools.toy_training.classifier import Classifier, classifier_loss
from tools.toy_training.export import export
from tools.toy_training.networks import LATENT_CHANNELS
from tools.toy_training.pool import IMAGE_SIZE, PRIMITIVES, VIEWS, Pool, draw_pool, render_pool
from tools.toy_training.preview import draw_views, text_ids, token_ids
from tools.toy_training.training import (
    Diffusion,
    Gradients,
    Run,
    Schedule,
    Trainer,
    encode_pool,
    train_unet,
    train_vae,
)

log = logging.getLogger("toy_training")
PARTS = ("vae", "unet", "flat")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("draw", "warm", "train", "classifier"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, default="vae", help="of warm: the kind of step to compile")
    parser.add_argument("--assets", type=int, default=220_000, help="training assets for each GPU")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--vae-seconds", type=float, default=100)
    parser.add_argument("--vae-assets", type=int, default=30_000)
    parser.add_argument("--unet-seconds", type=float, default=1150)
    parser.add_argument("--batch", type=int, default=128, help="sets of four views for each GPU and step")
    parser.add_argument(
        "--weights", type=Path, help="an earlier run's export folder, whose weights the training starts from"
    )
    parser.add_argument("--classifier-seconds", type=float, default=150)
    parser.add_argument("--stop-after", type=float, default=540, help="seconds of this slice")
    return parser.parse_args()


def pool_path(folder: Path, rank: int) -> Path:
    return folder / f"pool{rank}.pt"


def draw_pools(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    for rank in range(options.gpus):
        pool = draw_pool(options.assets, seed=100 + rank, processes=options.processes)
        torch.save(vars(pool), pool_path(options.folder, rank))


def warm(options: argparse.Namespace) -> None:
    """Compile one kind of step on noise, so that the processes of ``train`` find the compiler's cache filled."""
    run = begin(options)
    run.folder = options.folder / "warm" / options.part
    run.folder.mkdir(parents=True, exist_ok=True)
    pool = draw_pool(options.batch, seed=1, processes=1).map(lambda tensor: tensor.to(run.device))
    shape = (len(pool), VIEWS)
    if options.part == "vae":
        images = torch.randint(0, 255, (*shape, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=run.device)
        train_vae(run, images, 1e-9, time.monotonic())
        return
    latents = torch.randn(*shape, LATENT_CHANNELS, 16, 16, device=run.device).to(torch.bfloat16)
    alphas = torch.zeros(*shape, 16, 16, dtype=torch.uint8, device=run.device)
    spheres = torch.tensor([0.0, 0.0, 0.0, 1.0], device=run.device).expand(len(pool), 4)
    kinds = (options.part == "flat",)
    train_unet(run, pool, latents, alphas, spheres, 1e-9, time.monotonic(), options.batch, kinds=kinds)


def trial_assets() -> tuple[Pool, list[str]]:
    """Held-out combinations and families at fixed cameras, to watch the training by; none of them is ever scored."""
    assets = [draw(9_000 + i, family.name, held_out_color(family)) for i, family in enumerate(KNOWN[::2])]
    assets += [draw(9_100 + i, family.name) for i, family in enumerate(HELD_OUT)]
    rows = torch.zeros(len(assets), PRIMITIVES, assets[0].rows.shape[1])
    rows[..., 0] = -1
    for row, asset in zip(rows, assets, strict=True):
        row[: len(asset.rows)] = torch.from_numpy(asset.rows)
    count = len(assets)
    pool = Pool(
        family=torch.full((count,), -1),
        colors=torch.tensor([[NAMES.index(name) for name in asset.colors] for asset in assets]),
        shades=torch.stack([torch.from_numpy(asset.shades) for asset in assets]),
        rows=rows,
        stretch=torch.stack([torch.from_numpy(asset.stretch) for asset in assets]),
        azimuth=torch.full((count,), 30.0),
        elevation=torch.full((count,), 20.0),
    )
    return pool, [asset.full_caption() for asset in assets]


def load_or_make_latents(run: Run, options: argparse.Namespace, stop_at: float):
    """Pool, latents, alphas, spheres, statistics of this process; None while the VAE is still learning."""
    path = run.folder / f"latents{run.rank}.pt"
    pool = Pool(**torch.load(pool_path(run.folder, run.rank), weights_only=True)).map(lambda t: t.to(run.device))
    if run.every(path.exists()):  # the way there is taken together, or the processes would wait for each other
        return pool, *(t.to(run.device) for t in torch.load(path, weights_only=True))
    images, alphas, spheres = render_pool(pool)
    if run.rank == 0:
        log.info("rendered %d sets, %.1f GB", len(pool), images.numel() / 1e9)
        save_sheet(run.folder / "export" / "pool.jpg", images[:48].float() / 255)
    vae = train_vae(run, images[: options.vae_assets], options.vae_seconds, stop_at, start=options.weights)
    if not vae.done:
        return None
    network = vae.averaged()["vae"].eval()
    latents = encode_pool(network, images)
    statistics = torch.stack([latents.float().mean((0, 1, 3, 4)), latents[:20_000].float().std((0, 1, 3, 4))])  # (2,C)
    run.average([statistics])
    shape = (1, 1, -1, 1, 1)
    latents = ((latents.float() - statistics[0].view(shape)) / statistics[1].view(shape)).to(torch.bfloat16)
    if run.rank == 0:
        with torch.no_grad():
            shown = images[:24].flatten(0, 1)[::4]
            drawn = network(shown.movedim(-1, 1).float() / 127.5 - 1).sample.movedim(1, -1) / 2 + 0.5
            pair = torch.stack([shown.float() / 255, drawn.clamp(0, 1)], 1)
            save_sheet(run.folder / "export" / "vae.jpg", pair)
            bound = foreground_psnr(pair[:, 1:], pair[:, :1])
            log.info("VAE bound %.2f dB foreground", float(bound.mean()))
        torch.save({"vae": network.state_dict(), "statistics": statistics}, run.folder / "vae_done.pt")
    partial = path.with_suffix(".partial")
    torch.save([latents, alphas, spheres, statistics], partial)
    os.replace(partial, path)
    return pool, latents, alphas, spheres, statistics


def save_sheet(path: Path, rows: torch.Tensor, wide: int = 3) -> None:  # (B, V, H, W, 3)
    """Pictures in rows of V, ``wide`` of which stand side by side."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows[: len(rows) // wide * wide].unflatten(0, (-1, wide))
    sheet = rows.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 3)
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().cpu().numpy()).save(path, quality=90)


@torch.no_grad()
def report(run: Run, diffusion: Diffusion, vae: torch.nn.Module, statistics: torch.Tensor) -> None:
    """Scores and a sheet of the trial assets: truth, pseudo-tokens, full caption."""
    pool, captions = trial_assets()
    pool = pool.map(lambda tensor: tensor.to(run.device))
    images, _, spheres = render_pool(pool)
    truth = images.float() / 255
    sheet, lines = [truth], []
    for name, ids, scales in (
        ("16 slots", token_ids(len(truth), 16, run.device), (1.0, 2.0, 3.0)),
        ("8 slots", token_ids(len(truth), 8, run.device), (2.0,)),
        ("full caption", text_ids(captions, run.device), (2.0, 4.0)),
    ):
        for scale in scales:
            drawn = draw_views(diffusion, vae, (statistics[0], statistics[1]), ids, pool, spheres, scale)
            psnr = foreground_psnr(drawn, truth)
            known = len(KNOWN[::2])
            lines.append((name, scale, float(psnr[:known].mean()), float(psnr[known:].mean())))
            log.info("%-12s guidance %.1f: known %.2f dB, new families %.2f dB", *lines[-1])
            if scale == 2.0:
                sheet.append(drawn)
    save_sheet(run.folder / "export" / "trial.jpg", torch.stack(sheet, 1).flatten(0, 1)[:, :3], len(sheet))


def begin(options: argparse.Namespace) -> Run:
    run = Run.start(options.folder)
    logging.basicConfig(level=logging.INFO if run.rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return run


def train(options: argparse.Namespace) -> None:
    stop_at = time.monotonic() + options.stop_after
    run = begin(options)
    made = load_or_make_latents(run, options, stop_at)
    if made is None:
        return
    pool, latents, alphas, spheres, statistics = made
    trainer = train_unet(
        run, pool, latents, alphas, spheres, options.unet_seconds, stop_at, options.batch, start=options.weights
    )
    if run.rank == 0:
        networks = trainer.averaged().eval()
        diffusion = Diffusion().to(run.device).eval()
        diffusion.unet, diffusion.text, diffusion.assets = networks["unet"], networks["text"], networks["assets"]
        vae = make_finished_vae(run)
        target = run.folder / "export"
        export(target, diffusion.unet, diffusion.text, vae, *statistics.cpu())
        half = {key: value.half() for key, value in diffusion.assets.state_dict().items()}
        torch.save(half, target / "asset_encoder.pt")
        (target / "progress.json").write_text(json.dumps({"step": trainer.step, "done": trainer.done}))
        log.info("step %d, %.0f s of %.0f s", trainer.step, trainer.spent, trainer.seconds)
        report(run, diffusion, vae, statistics)


def train_classifier(options: argparse.Namespace) -> None:
    """Train the reader of pictures on fresh renders of family assets, a quarter of them through the VAE."""
    run = begin(options)
    fresh = draw_pool(120_000, seed=900, processes=options.processes)
    fresh = fresh.map(lambda tensor, named=fresh.family >= 0: tensor[named].to(run.device))
    images, _, _ = render_pool(fresh)
    vae = make_finished_vae(run)
    reader = Classifier().to(run.device)
    schedule = Schedule(2e-3, 100)
    trainer = Trainer(run, "classifier", torch.nn.ModuleDict({"c": reader}), schedule, options.classifier_seconds, 1e-3)
    rng = torch.Generator(run.device).manual_seed(7)
    kept = len(images) - 512  # the last 512 are for the check

    def loss_of(views, family, colors):
        return classifier_loss(reader, views, family, colors), {}

    def draw_batch():
        index = torch.randint(kept, (96,), generator=rng, device=run.device)
        views = images[index].float() / 255
        with torch.no_grad():
            blurred = vae(views[:24].flatten(0, 1).movedim(-1, 1) * 2 - 1).sample.movedim(1, -1)
            views[:24] = (blurred / 2 + 0.5).clamp(0, 1).unflatten(0, views[:24].shape[:2])
        return views, fresh.family[index], fresh.colors[index]

    if not trainer.done:
        gradients = Gradients(loss_of, trainer.parameters, draw_batch())
        trainer.loop(lambda: gradients(*draw_batch()), time.monotonic() + options.stop_after, report_every=500)
    trainer.averaged()
    family, colors = reader.eval().read(images[kept:].float() / 255)
    right = [(family == fresh.family[kept:]).float().mean(), *(colors == fresh.colors[kept:]).float().mean(0)]
    log.info("fresh renders read: family, main, second, third colour %s", [round(float(r), 4) for r in right])
    target = run.folder / "export"
    target.mkdir(exist_ok=True)
    reader.save(target / "toy_classifier.safetensors")


def make_finished_vae(run: Run) -> torch.nn.Module:
    from tools.toy_training.networks import make_vae

    vae = make_vae().to(run.device).eval()
    vae.load_state_dict(torch.load(run.folder / "vae_done.pt", map_location=run.device, weights_only=True)["vae"])
    return vae


if __name__ == "__main__":
    chosen = arguments()
    {"draw": draw_pools, "warm": warm, "train": train, "classifier": train_classifier}[chosen.task](chosen)
