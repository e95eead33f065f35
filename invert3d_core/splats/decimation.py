"""Fewer splats that look the same: pairs that resemble each other become one, again and again."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..progress import Progress, no_progress
from ..rotations import quaternions, rotation_matrices
from .gaussians import GaussianSplats
from .neighbors import leaves
from .spherical_harmonics import C0

LEAF_SIZE = 16  # splats that are compared with each other in a round
CHUNK_LEAVES = 2048  # leaves that are compared at once
MAX_OPACITY = 0.99  # what the rasterizer draws at most; beyond it optical depth would mean nothing
LARGE_DEPTH = 8.0  # from here on E1 is below 4e-5
EULER = 0.5772156649015329
MOST = torch.finfo(torch.float32).max  # the cost of what cannot be computed: joined at last, but joined
COLOR_WEIGHT = 1.0  # of a squared difference of colour against shapes that do not overlap at all
THINNEST = 0.1  # of a splat's middle axis: flatter ones are compared as if they were this thick


@torch.no_grad()
def decimate(splats: GaussianSplats, count: int, seed: int = 0, progress: Progress = no_progress) -> GaussianSplats:
    """At most ``count`` splats that look as much like these as merging can; the same splats where there are no more.

    In rounds, each splat finds the partner among its neighbours whose union with it changes the picture least, and
    pairs that chose each other become one splat: with the mean and covariance of their mixture (moment matching) and
    the mean colour, all bands, each weighted by what it covers, as in the hierarchy of Kerbl et al. (2024); and with
    the optical depth of both, so that its height and width hide as much as they did together. What a union costs is
    the weight of the smaller one times the difference: 1 − the Bhattacharyya coefficient of the two Gaussians, plus the
    squared difference of their base colours. Splats that are merged with none keep their values; the order is kept, a
    merged one stands where its first splat stood.

    seed: of the turns of the grid in which neighbours are looked for. progress: called after each round with how many
    splats are gone, of how many. Neighbours are compared in chunks of fixed size; beside them it takes memory for a few
    copies of the splats.
    Raises ValueError when count is below 1.
    """
    if count < 1:
        raise ValueError(f"decimate: count is {count}, expected at least 1 splat")
    if len(splats) <= count:
        return splats
    generator = torch.Generator().manual_seed(seed)
    clusters = _Clusters.of(splats)
    while len(clusters) > count:
        turned = clusters.means @ _random_rotation(generator).to(clusters.means)
        clusters = clusters.joined(*_pairs(clusters, leaves(turned, LEAF_SIZE), len(clusters) - count))
        progress(len(splats) - len(clusters), len(splats) - count)
    return _splats_of(clusters, splats)


@dataclass
class _Clusters:
    """Groups of splats by their sums: what they cover together, and the moments of their optical depth."""

    sources: Tensor  # (M,) the first splat of each
    sizes: Tensor  # (M,) how many splats
    weights: Tensor  # (M,) opacity times area, summed
    depths: Tensor  # (M,) peak of the optical depth times its area, summed
    means: Tensor  # (M,3)
    covariances: Tensor  # (M,6) of the optical depth: xx, xy, xz, yy, yz, zz
    sh: Tensor  # (M,K,3)

    @classmethod
    def of(cls, splats: GaussianSplats) -> "_Clusters":
        covariances = _upper(splats.covariances())
        # What shows nothing still has a place: the smallest number is not zero.
        weights = (splats.opacities[:, 0] * _area(covariances)).clamp_min(torch.finfo(torch.float32).tiny)
        peaks = -torch.log1p(-splats.opacities[:, 0].clamp(max=MAX_OPACITY))
        covariances = covariances / _spread(peaks)[:, None]
        sources = torch.arange(len(splats), device=splats.device)
        depths = peaks * _area(covariances)
        return cls(sources, torch.ones_like(sources), weights, depths, splats.positions, covariances, splats.sh)

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, rows: Tensor) -> "_Clusters":
        return _Clusters(*(getattr(self, field.name)[rows] for field in fields(self)))

    def joined(self, first: Tensor, second: Tensor) -> "_Clusters":
        """The clusters after pairs became one, which takes the place of the first."""
        one, other = self[first], self[second]
        kept = torch.ones(len(self), dtype=torch.bool, device=self.weights.device)
        kept[second] = False
        place = (kept.cumsum(0) - 1)[first]
        weights = one.weights + other.weights
        share = (other.weights / weights)[:, None]
        apart = other.means - one.means
        inside = one.covariances + share * (other.covariances - one.covariances)
        between = share * (1 - share) * _upper(apart[:, :, None] * apart[:, None])
        result = self[kept]
        result.sizes[place] = one.sizes + other.sizes
        result.weights[place] = weights
        result.depths[place] = one.depths + other.depths
        result.means[place] = one.means + share * apart
        result.covariances[place] = inside + between
        result.sh[place] = one.sh + share[:, :, None] * (other.sh - one.sh)
        return result


def _pairs(clusters: _Clusters, groups: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Up to ``wanted`` disjoint pairs of clusters that are best joined: indices of both, the first the smaller."""
    partner = torch.empty(len(clusters), dtype=torch.int64, device=groups.device)
    cost = torch.empty(len(clusters), device=groups.device)
    for rows in groups.split(CHUNK_LEAVES):
        real = rows >= 0
        costs = _costs(clusters, rows.clamp_min(0))  # (L,S,S)
        costs.masked_fill_(~(real[:, :, None] & real[:, None]), torch.inf)
        costs.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        least, place = costs.min(2)
        cost[rows[real]] = least[real]
        partner[rows[real]] = rows.gather(1, place)[real]
    own = torch.arange(len(clusters), device=groups.device)
    mutual = ((partner[partner] == own) & (own < partner) & (cost < torch.inf)).nonzero()[:, 0]
    first = mutual[cost[mutual].argsort(stable=True)[:wanted]]
    return first, partner[first]


def _costs(clusters: _Clusters, rows: Tensor) -> Tensor:  # (L,S) -> (L,S,S)
    """What it costs to join any two of the clusters of a leaf."""
    apart = clusters.means[rows][:, :, None] - clusters.means[rows][:, None]  # (L,S,S,3)
    covariances, weights = clusters.covariances[rows], clusters.weights[rows]
    # Lengths in units of the leaf: determinants of tiny or huge splats leave the range of float32.
    variances = covariances[..., (0, 3, 5)].sum(2).mean(1) + 1e-6 * apart.square().sum(3).mean((1, 2))
    unit = variances.sqrt().clamp_min(1e-18)[:, None, None]
    covariances, apart = _thickened(covariances / unit / unit), apart / unit[..., None]
    colors = (C0 * clusters.sh[:, 0][rows] + 0.5).clamp_min(0)
    volumes = _determinant(covariances).clamp_min(1e-38).log()
    between = (covariances[:, :, None] + covariances[:, None]) / 2  # (L,S,S,6)
    volume = _determinant(between).clamp_min(1e-38)
    distance = _quadratic_adjugate(between, apart) / volume / 8
    distance = distance + (volume.log() - (volumes[:, :, None] + volumes[:, None]) / 2) / 2
    different = 1 - torch.exp(-distance.clamp_min(0))
    colored = (colors[:, :, None] - colors[:, None]).square().sum(3)
    smaller = weights[:, :, None] / (1 + weights[:, :, None] / weights[:, None])  # the harmonic sum
    smaller = (smaller + smaller.mT) / 2  # exactly symmetric, so that in each leaf some pair chooses each other
    return (smaller * (different + COLOR_WEIGHT * colored)).nan_to_num(nan=MOST, posinf=MOST)


def _splats_of(clusters: _Clusters, splats: GaussianSplats) -> GaussianSplats:
    """The clusters as splats; those of one splat as it was."""
    merged = clusters.sizes > 1
    scales, rotations = splats.scales[clusters.sources], splats.rotations[clusters.sources]
    opacities = splats.opacities[clusters.sources]
    covariances = clusters.covariances[merged]
    peaks = clusters.depths[merged] / _area(covariances).clamp_min(1e-30)
    scales[merged], rotations[merged] = _axes_of(covariances * _spread(peaks)[:, None])
    opacities[merged, 0] = -torch.expm1(-peaks)
    return GaussianSplats(clusters.means, scales, rotations, opacities, clusters.sh, splats.comment, check_values=False)


def _axes_of(covariances: Tensor) -> tuple[Tensor, Tensor]:  # (M,6) -> (M,3), (M,4)
    """Scales and rotations of covariances, in float64 on the CPU: elsewhere batches are slow or limited."""
    xx, xy, xz, yy, yz, zz = covariances.cpu().double().unbind(1)
    matrices = torch.stack([torch.stack(row, 1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))], 1)
    values, axes = torch.linalg.eigh(matrices)
    axes = axes * torch.where(torch.linalg.det(axes) < 0, -1, 1)[:, None, None]
    return values.clamp_min(0).sqrt().to(covariances), quaternions(axes).to(covariances)


def _area(covariances: Tensor) -> Tensor:  # (...,6) -> (...)
    """The product of a Gaussian's two largest standard deviations, smoothly: the root of the sum of all three pairs.

    √(λ1 λ2 + λ1 λ3 + λ2 λ3), the second invariant of the covariance, which needs no eigenvalues; in units of the trace,
    as the squares of tiny or huge variances leave the range of float32.
    """
    unit = (covariances[..., 0] + covariances[..., 3] + covariances[..., 5]).clamp_min(torch.finfo(torch.float32).tiny)
    xx, xy, xz, yy, yz, zz = (covariances / unit[..., None]).unbind(-1)
    return unit * (xx * yy - xy * xy + xx * zz - xz * xz + yy * zz - yz * yz).clamp_min(0).sqrt()


def _spread(peaks: Tensor) -> Tensor:  # (M,)
    """How much wider a Gaussian of alpha is than the Gaussian of optical depth that hides as much; peaks: of the depth.

    A depth τ exp(−r²/2) hides 1 − exp(−τ exp(−r²/2)), which has a flat top where τ is large; its integral is
    2π Ein(τ), with the entire exponential integral Ein(τ) = Σ −(−τ)ⁿ / (n n!) = ln τ + γ + E1(τ). The Gaussian of the
    same height and integral has the variance Ein(τ) / (1 − exp(−τ)).
    """
    small = peaks.clamp(1e-4, LARGE_DEPTH)
    term, series = torch.ones_like(small), torch.zeros_like(small)
    for n in range(1, 31):
        term = term * -small / n
        series = series - term / n
    integral = torch.where(peaks > LARGE_DEPTH, peaks.clamp_min(1).log() + EULER, series)
    return integral / -torch.expm1(-peaks.clamp_min(1e-4))


def _thickened(covariances: Tensor) -> Tensor:  # (...,6) -> (...,6)
    """Covariances with a least thickness, so that flat splats have a volume to compare."""
    trace = covariances[..., 0] + covariances[..., 3] + covariances[..., 5]
    middle = _area(covariances).square() / trace.clamp_min(1e-30)  # λ2 where λ3 is small, about
    floor = THINNEST**2 * middle + 1e-12 * trace + 1e-20
    diagonal = torch.tensor([1.0, 0, 0, 1, 0, 1], device=covariances.device)
    return covariances + floor[..., None] * diagonal


def _determinant(covariances: Tensor) -> Tensor:  # (...,6) -> (...)
    xx, xy, xz, yy, yz, zz = covariances.unbind(-1)
    return xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)


def _quadratic_adjugate(covariances: Tensor, vectors: Tensor) -> Tensor:  # (...,6), (...,3) -> (...)
    """vᵀ adj(C) v: the squared Mahalanobis distance times the determinant."""
    xx, xy, xz, yy, yz, zz = covariances.unbind(-1)
    x, y, z = vectors.unbind(-1)
    return (
        (yy * zz - yz * yz) * x * x
        + (xx * zz - xz * xz) * y * y
        + (xx * yy - xy * xy) * z * z
        + 2 * ((xz * yz - xy * zz) * x * y + (xy * yz - xz * yy) * x * z + (xy * xz - xx * yz) * y * z)
    )


def _upper(matrices: Tensor) -> Tensor:  # (M,3,3) -> (M,6)
    return matrices[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)]


def _random_rotation(generator: torch.Generator) -> Tensor:  # (3,3)
    return rotation_matrices(torch.randn(4, generator=generator))
