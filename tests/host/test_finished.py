"""Trainings are kept where a user finds them, found again, and forgotten only when asked to."""

from pathlib import Path

import pytest

from tests.host.client import Client
from tests.host.server import Server
from tests.host.test_chain import at_step, steps_of, token_file, training_only, write_chair


@pytest.fixture(scope="module", autouse=True)
def chair(server: Server) -> None:
    """An object to learn, in the input folder."""
    write_chair(server)


def runs(server: Server, name: str) -> list[Path]:
    """What is kept of the trainings of a token."""
    return sorted((server.base / "user" / "__invert3d" / "runs").glob(f"{name}-*"))


def test_a_b_a_trains_a_once(client: Client, server: Server) -> None:
    a, b = (training_only(client, "again", seed=seed) for seed in (1, 2))
    for prompt in (a, b):
        prompt["save"]["inputs"]["overwrite"] = True
    assert steps_of(client.succeed(a)) != []
    saved = token_file(server, "again").read_bytes()
    assert steps_of(client.succeed(b)) != []
    assert token_file(server, "again").read_bytes() != saved
    before = len(server.log())
    assert steps_of(client.succeed(a)) == []
    assert token_file(server, "again").read_bytes() == saved

    kept = runs(server, "again")
    assert sorted(file.suffix for file in kept) == [".png", ".png", ".safetensors", ".safetensors"]
    (line,) = [line for line in server.log()[before:].splitlines() if "found again" in line]
    assert "<again> is found again, with all its 2 steps: " in line
    assert line.endswith(tuple(str(file) for file in kept)), "the log says where"


def test_settings_that_change_nothing_do_not_train_again(client: Client) -> None:
    client.succeed(training_only(client, "same"))
    free = {"gradient_checkpointing": True, "checkpoint_every": 1, "preview_every": 3}
    assert steps_of(client.succeed(training_only(client, "same", **free))) == []


def test_without_resume_it_is_trained_anew_in_place_of_the_kept_one(client: Client, server: Server) -> None:
    client.succeed(training_only(client, "anew", steps=4))
    saved, kept = token_file(server, "anew").read_bytes(), runs(server, "anew")
    anew = training_only(client, "anew", steps=4, resume=False)

    cancelled = client.run(anew, on_event=at_step(1, client.interrupt))
    assert cancelled.status == "interrupted"
    assert steps_of(client.succeed(training_only(client, "anew", steps=4))) == [], "the finished one is still there"

    assert steps_of(client.succeed(anew))[-1] == 4
    assert "<anew> is trained anew: 4 steps were kept, and resume is off." in server.log()
    assert runs(server, "anew") == kept
    assert token_file(server, "anew").read_bytes() == saved


def test_a_cancelled_one_goes_on_when_it_is_queued_again(client: Client, server: Server) -> None:
    prompt = training_only(client, "halved", steps=12)
    cancelled = client.run(prompt, on_event=at_step(3, client.interrupt))
    assert cancelled.status == "interrupted"
    reached = max(steps_of(cancelled))
    finished = steps_of(client.succeed(prompt))
    assert min(finished) >= reached and finished[-1] == 12
    assert "<halved> is found again and goes on from step" in server.log()


def test_a_damaged_one_is_trained_again(client: Client, server: Server) -> None:
    client.succeed(training_only(client, "damaged"))
    saved = token_file(server, "damaged").read_bytes()
    (kept,) = [file for file in runs(server, "damaged") if file.suffix == ".safetensors"]
    kept.write_bytes(kept.read_bytes()[:-100])
    client.succeed(training_only(client, "other"))  # the host drops what this one does not use
    assert steps_of(client.succeed(training_only(client, "damaged")))[-1] == 2
    assert "is damaged; it is removed and done again" in server.log()
    assert token_file(server, "damaged").read_bytes() == saved
