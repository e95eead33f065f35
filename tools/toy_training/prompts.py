"""Random prompts for a batch of assets, as word ids and slots for pseudo-tokens, put together on the device.

A row is either a caption or speaks of the asset by its pseudo-tokens P1…Pn, with or without words beside them.
Rows that change a colour by a word ("a blue P1…Pn", the asset being red in P) teach that words win over tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from invert3d_core.toy.colors import BRIGHTNESS, COLORS, NAMES, TINT
from invert3d_core.toy.families import KNOWN
from invert3d_core.toy.primitives import COLOR, FIXED, PART
from invert3d_core.toy.vocabulary import MAX_LENGTH, words

from .networks import SLOTS
from .pool import Pool

EMPTY_SHARE = 0.09
INSTANCE_SHARE = 0.45  # of the rows whose asset has a family; nameless assets have no other
SLOT_COUNTS, SLOT_SHARES = (16, 8, 4), (0.65, 0.22, 0.13)
EDIT_MAIN, EDIT_PART, NAME_OWN = 0.24, 0.08, 0.10  # of the instance rows
HYBRID = 0.22  # of the instance rows with a family: some slots hold the caption's words, as at the start of learning
WRONG_COLOR = 0.15  # of the captions: a second colour word, where the first one counts
LEVELS = (0.62, 0.10, 0.20, 0.08)  # captions with both parts, one part, main colour only, family only
SUFFIX_SHARE = 0.5
UNKNOWN_SHARE = 0.02  # words replaced by the unknown word, so that it means nothing
IDS = {word: index for index, word in enumerate(words())}
BEGIN, END, UNKNOWN = 0, 1, 2
SLOT = 1000  # ids from here on are slots


@dataclass
class Vocabulary:
    """Ids of colours, families and part names on a device."""

    colors: Tensor
    families: Tensor
    parts: Tensor  # (families, 2)
    vowels: Tensor  # (words,) bool
    centers: Tensor  # (12,3)
    forbidden: Tensor  # (families,) colour index that never is a main colour
    levels: Tensor  # shares of `LEVELS`; here, because making a tensor on a GPU waits for it
    slot_counts: Tensor
    slot_shares: Tensor

    @classmethod
    def on(cls, device) -> "Vocabulary":
        def ids(names):
            return torch.tensor([IDS[name] for name in names], device=device)

        from invert3d_core.toy.assets import held_out_color

        return cls(
            ids(NAMES),
            ids(family.name for family in KNOWN),
            ids(part for family in KNOWN for part in family.parts).unflatten(0, (-1, 2)),
            torch.tensor([word[0] in "aeiou" for word in words()], device=device),
            torch.tensor(list(COLORS.values()), device=device),
            torch.tensor([NAMES.index(held_out_color(family)) for family in KNOWN], device=device),
            torch.tensor(LEVELS, device=device),
            torch.tensor(SLOT_COUNTS, device=device),
            torch.tensor(SLOT_SHARES, device=device),
        )


@dataclass
class Prompts:
    """ids: (B,48), ids ≥ `SLOT` are slots. rows: (B,P,21) the primitives that the asset encoder sees.

    instance: (B,) bool, which rows use slots.
    """

    ids: Tensor
    rows: Tensor
    instance: Tensor


def _chance(share: float, count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, device=rng.device) < share


def _other_colors(colors: Tensor, barred: Tensor, rng: torch.Generator) -> Tensor:  # (B,), (B,) -> (B,)
    """A colour index that is neither ``colors`` nor ``barred``."""
    drawn = torch.rand(len(colors), len(NAMES), generator=rng, device=colors.device)
    drawn.scatter_(1, colors[:, None], -1.0)
    drawn.scatter_(1, barred[:, None], -1.0)
    return drawn.argmax(1)


def _compact(ids: Tensor, present: Tensor) -> Tensor:
    """Move the present columns to the left; begin before, end after and up to `MAX_LENGTH`."""
    order = torch.sort((~present).int(), dim=1, stable=True).indices
    kept = torch.where(present, ids, END).gather(1, order)[:, : MAX_LENGTH - 2]
    begin, end = torch.full_like(kept[:, :1], BEGIN), torch.full_like(kept[:, :1], END)
    body = torch.cat([begin, kept, end], 1)
    return torch.nn.functional.pad(body, (0, MAX_LENGTH - body.shape[1]), value=END)


def make_prompts(pool: Pool, vocabulary: Vocabulary, rng: torch.Generator) -> Prompts:
    """Prompts for a batch of assets whose pictures show ``pool``'s own colours."""
    count, device = len(pool), pool.rows.device
    known = pool.family >= 0
    family = pool.family.clamp_min(0)
    names = vocabulary.colors[pool.colors]  # (B,3) word ids
    parts = vocabulary.parts[family]  # (B,2)
    instance = ~known | _chance(INSTANCE_SHARE, count, rng)

    # What an instance row does: rebuild, change the main colour, change a named part, or name its own colour.
    kind = torch.rand(count, generator=rng, device=device)
    edit_main = instance & (kind < EDIT_MAIN)
    edit_part = instance & known & (kind >= EDIT_MAIN) & (kind < EDIT_MAIN + EDIT_PART)
    own = instance & (kind >= EDIT_MAIN + EDIT_PART) & (kind < EDIT_MAIN + EDIT_PART + NAME_OWN)
    which = torch.randint(1, 3, (count,), generator=rng, device=device)
    changed = torch.where(edit_main, 0, which)
    before = pool.colors.gather(1, changed[:, None])[:, 0]
    barred = torch.where(known & (changed == 0), vocabulary.forbidden[family], before)
    other = _other_colors(before, barred, rng)
    bright = torch.empty(count, 1, device=device).uniform_(*BRIGHTNESS, generator=rng)
    tint = torch.empty(count, 3, device=device).uniform_(-TINT, TINT, generator=rng)
    shade = (vocabulary.centers[other] * bright + tint).clamp(0.03, 0.97)
    repaint = (edit_main | edit_part)[:, None] & (pool.rows[..., PART] == changed[:, None])
    repaint &= pool.rows[..., PART] != FIXED
    rows = pool.rows.clone()
    rows[..., COLOR] = torch.where(repaint[..., None], shade[:, None], rows[..., COLOR])

    # A token learned from the source's look starts from the source's words.
    source = pool.colors.scatter(1, changed[:, None], torch.where(edit_main | edit_part, other, before)[:, None])
    source = vocabulary.colors[source]

    # Columns of the longest row: article, wrong colour, colour, family, slots, "with" c2 p2 "and" c3 p3, ", 3d asset".
    level = torch.multinomial(vocabulary.levels, count, True, generator=rng)
    second = ~instance & (level == 0)
    third = second.clone()
    single = ~instance & (level == 1)
    first_of_two = _chance(0.5, count, rng)
    second |= single & first_of_two
    third |= single & ~first_of_two
    second |= edit_part & (which == 1)
    third |= edit_part & (which == 2)
    colored = (~instance & (level < 3)) | edit_main | own
    wrong = ~instance & (level < 3) & _chance(WRONG_COLOR, count, rng)
    stray = vocabulary.colors[_other_colors(pool.colors[:, 0], pool.colors[:, 0], rng)]
    slots = vocabulary.slot_counts[torch.multinomial(vocabulary.slot_shares, count, True, generator=rng)]
    suffix = _chance(SUFFIX_SHARE, count, rng)

    word = dict.fromkeys(("with", "and", ",", "3d", "asset"))
    word = {name: torch.full((count,), IDS[name], device=device) for name in word}
    phrase = torch.stack(
        [
            source[:, 0],
            vocabulary.families[family],
            word["with"],
            source[:, 1],
            parts[:, 0],
            word["and"],
            source[:, 2],
            parts[:, 1],
        ],
        1,
    )  # the caption's words, which a token starts from
    index = torch.arange(SLOTS, device=device)
    pseudo = (SLOT + index).expand(count, -1)
    hybrid = instance & known & _chance(HYBRID, count, rng)
    rate = torch.rand(count, 1, generator=rng, device=device)
    worded = hybrid[:, None] & (torch.rand(count, SLOTS, generator=rng, device=device) < rate)
    pseudo = torch.where(worded, phrase[:, index % phrase.shape[1]], pseudo)
    # Of two colour words the first one counts.
    first = torch.where(wrong, names[:, 0], stray)
    then = torch.where(wrong, stray, names[:, 0])
    leading = torch.where(colored, torch.where(wrong, first, then), vocabulary.families[family])
    vowel = vocabulary.vowels[leading] & (colored | ~instance)
    article = torch.where(vowel, IDS["an"], IDS["a"])
    ids = torch.cat(
        [
            torch.stack([article, first, then, vocabulary.families[family]], 1),
            pseudo,
            torch.stack([word["with"], names[:, 1], parts[:, 0], word["and"], names[:, 2], parts[:, 1]], 1),
            torch.stack([word[","], word["3d"], word["asset"]], 1),
        ],
        1,
    )
    filled = _chance(1 - EMPTY_SHARE, count, rng)
    present = torch.cat(
        [
            torch.stack([torch.ones_like(known), wrong, colored, ~instance], 1),
            instance[:, None] & (index < slots[:, None]),
            torch.stack([second | third, second, second, second & third, third, third], 1),
            torch.stack([suffix] * 3, 1),
        ],
        1,
    )
    present &= filled[:, None]
    lost = (ids < SLOT) & (torch.rand(ids.shape, generator=rng, device=device) < UNKNOWN_SHARE)
    lost[:, 1:3] = False  # colours and families always count
    lost[:, 3] = False
    return Prompts(_compact(torch.where(lost, UNKNOWN, ids), present), rows, instance & filled)
