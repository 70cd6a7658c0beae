import math

import diffusers
import pytest
import torch

from service.engine.schedule import clean_latent, descending, noise_of_step, timestep_of_noise

STABLE_DIFFUSION = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod


@pytest.mark.parametrize(("step", "timestep"), [(0.50, 22), (0.75, 47), (1.00, 76), (1.50, 140), (2.00, 203)])
def test_step_to_timestep_under_stable_diffusions_schedule(step: float, timestep: int) -> None:
    assert abs(timestep_of_noise(STABLE_DIFFUSION, noise_of_step(step)) - timestep) <= 1


def test_uniform_noise() -> None:
    assert math.isclose(noise_of_step(1.0), float(torch.rand(1_000_000, dtype=torch.float64).std()), rel_tol=0.01)


def test_extremes_stay_on_the_schedule() -> None:
    assert timestep_of_noise(STABLE_DIFFUSION, 0.0) == 0
    assert timestep_of_noise(STABLE_DIFFUSION, 1e9) == len(STABLE_DIFFUSION) - 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_network_gives_the_clean_latent(prediction_type: str) -> None:
    clean, noise, alpha = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.8)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    outputs = {"epsilon": noise, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean, "sample": clean}
    assert torch.allclose(clean_latent(prediction_type, noisy, outputs[prediction_type], alpha), clean, atol=1e-5)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="flow"):
        clean_latent("flow", torch.zeros(1), torch.zeros(1), torch.tensor(0.5))


def test_ladder() -> None:
    assert descending(76, 1) == [76]
    assert descending(75, 3) == [75, 50, 25]
    assert descending(0, 2) == [0, 0]
