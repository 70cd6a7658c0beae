import json
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import Stage
from training.loop import NOTES, Progress
from training.optimiser import Gains, Muon, Optimisers, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_an_orthogonalised_matrix_stretches_all_directions_alike(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    uneven = torch.randn(shape) * torch.logspace(0, 2, shape[-1])
    values = torch.linalg.svdvals(orthogonalise(uneven))
    assert torch.linalg.svdvals(uneven).amax() / torch.linalg.svdvals(uneven).amin() > 10
    assert values.max() < 1.3
    assert values.min() > 0.4


def fitted(steps: int) -> float:
    """Loss of a small convolution after so many steps towards another."""
    torch.manual_seed(1)
    target, student = nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 3)
    optimiser = Optimisers([student], [], 0.01)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        x = torch.randn(4, 6, 9, 9)
        loss = (student(x) - target(x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(0.01)
    return float(loss.detach())


def test_it_learns() -> None:
    assert fitted(150) < 0.1 * fitted(1)


def test_kernels_go_to_muon_and_the_rest_to_adam() -> None:
    optimiser = Optimisers([nn.Conv2d(3, 4, 3)], [nn.Conv2d(2, 2, 1)], 0.1)
    muon, adam = optimiser.members
    assert isinstance(muon, Muon)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 3, 3, 3)]
    assert {tuple(p.shape) for p in adam.param_groups[0]["params"]} == {(4,), (2, 2, 1, 1), (2,)}


def test_gains_make_whole_channels_louder_or_quieter_along_their_slope() -> None:
    torch.manual_seed(2)
    kernel, gradient, rate = torch.randn(5, 3, 3, 3), torch.randn(5, 3, 3, 3), 0.01
    parameter = nn.Parameter(kernel.clone())
    optimiser = Gains([parameter], rate)
    for _ in range(2):
        parameter.grad = gradient.clone()
        optimiser.step()
    # two steps of Adam along a slope that hardly changes are its rate each
    louder = [torch.exp(-gains_of(gradient * kernel, axis) * 2 * rate) for axis in (0, 1)]
    torch.testing.assert_close(parameter.detach(), kernel * louder[0] * louder[1], rtol=0, atol=2e-3)
    assert (parameter - kernel).abs().max() > 0.05


def test_gains_have_their_own_rate_beside_that_of_the_kernels() -> None:
    net = nn.Conv2d(3, 4, 3)
    optimiser = Optimisers([net], [], 0.1, gains=2.0)
    gains, muon, adam = (member.param_groups[0] for member in optimiser.members)
    net(torch.randn(1, 3, 4, 4)).sum().backward()
    optimiser.step(0.01)
    assert (gains["lr"], muon["lr"], adam["lr"]) == (0.02, 0.01, 0.01)


def gains_of(slopes: torch.Tensor, axis: int) -> torch.Tensor:
    """Sign of the slope of every channel along ``axis``: the first steps of Adam have the size of its rate."""
    return slopes.sum([other for other in range(4) if other != axis], keepdim=True).sign()


def train(progress: Progress, steps: int) -> None:
    """The same data for the same step, whenever it is taken."""
    for _ in range(steps):
        torch.manual_seed(progress.step)
        progress.update(progress.modules["net"](torch.randn(2, 3, 8, 8)).square().mean())


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Conv2d(3, 4, 3)


def test_a_resumed_stage_goes_on_as_if_it_had_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loop.time", type("clock", (), {"monotonic": staticmethod(lambda: 0.0)}))
    stage = Stage(minutes=1, batch=2, learning_rate=0.01, warmup_steps=3, decay=0.5, ema=0.9, gains=2.0)
    straight = Progress("s", {"net": net()}, stage, tmp_path / "a", muon=("net",))
    train(straight, 9)
    stopped = Progress("s", {"net": net()}, stage, tmp_path / "b", muon=("net",))
    train(stopped, 4)
    stopped.save()
    resumed = Progress("s", {"net": net()}, stage, tmp_path / "b", muon=("net",))
    assert resumed.step == 4
    train(resumed, 5)
    for one, other in ((straight.modules, resumed.modules), (straight.averaged, resumed.averaged)):
        for left, right in zip(one["net"].parameters(), other["net"].parameters(), strict=True):
            torch.testing.assert_close(left, right)


def test_what_was_trained_on_another_auto_encoder_is_not_gone_on_with(tmp_path: Path) -> None:
    stage = Stage(1, 2, 0.01, 1, 0.5, 0.9)
    first = Progress("unet", {"net": net()}, stage, tmp_path, of=100)
    train(first, 2)
    first.save()
    assert Progress("unet", {"net": net()}, stage, tmp_path, of=100).step == 2
    with pytest.raises(SystemExit, match="an auto-encoder of 100 steps, which has 250 now: move it away"):
        Progress("unet", {"net": net()}, stage, tmp_path, of=250)


def test_losses_in_pieces_are_differentiated_as_their_sum(tmp_path: Path) -> None:
    progress, x = Progress("s", {"net": net()}, Stage(1, 2, 0.01, 1, 0.5, 0.9), tmp_path), torch.randn(2, 3, 8, 8)
    network = progress.modules["net"]
    whole = progress.differentiate([network(x).square().mean()])
    expected = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    parts = progress.differentiate(network(piece).square().mean() / 2 for piece in x.chunk(2))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], expected)


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path: Path) -> None:
    progress = Progress("s", {"net": net()}, Stage(1, 2, 0.01, 1, 0.5, 0.9), tmp_path)
    before = [p.clone() for p in progress.modules["net"].parameters()]
    progress.update(progress.modules["net"](torch.full((1, 3, 4, 4), torch.nan)).sum())
    assert all((one == other).all() for one, other in zip(before, progress.modules["net"].parameters(), strict=True))


def test_a_line_of_the_log_has_the_means_of_its_steps(tmp_path: Path) -> None:
    progress = Progress("vae", {"a": nn.Linear(1, 1)}, Stage(1, 1, 0.1, 1, 0.5, 0.9), tmp_path)
    for number in range(2 * NOTES + 1):
        progress.note(loss=torch.tensor(float(number)), norm=2.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["loss"], line["norm"]) for line in lines] == [((NOTES - 1) / 2, 2.0), ((NOTES - 1) / 2 + NOTES, 2.0)]
