"""Captions a token is trained with."""

from collections.abc import Sequence

from ..errors import TrainingError

SLOT = "{}"


def captions(templates: Sequence[str], suffix_use: str, suffix: str) -> list[str]:
    """Every caption training draws from, with `{}` where the token stands.

    templates: texts with exactly one `{}`. suffix: what the model's own captions end with (MVDream: ", 3d asset").
    suffix_use: "never", "always", or "both" (each template without and with it, so that the token works either way).

    Raises TrainingError for a template without exactly one `{}`, for no templates and for an unknown suffix_use.
    """
    if not templates:
        raise TrainingError("There is no caption to train with. Give at least one template, for example 'a {}'.")
    for template in templates:
        if template.count(SLOT) != 1:
            raise TrainingError(
                f"The caption template {template!r} has {template.count(SLOT)} places for the token; expected exactly "
                "one '{}', as in 'a photo of a {}'."
            )
    endings = {"never": [""], "always": [suffix], "both": ["", suffix]}
    if suffix_use not in endings:
        raise TrainingError(f"suffix_use is {suffix_use!r}; expected one of {', '.join(endings)}.")
    return list(dict.fromkeys(template + ending for template in templates for ending in endings[suffix_use]))
