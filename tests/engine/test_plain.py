import pytest
import torch

from service.engine.plain import check_alike


def test_alike_is_near_everywhere() -> None:
    expected = torch.tensor([0.0, -100.0])
    check_alike(torch.tensor([0.009, -100.9]), expected, within=0.01)
    for other in (torch.tensor([0.011, -100.0]), torch.tensor([0.0, -101.1]), torch.tensor([0.0, float("nan")]), torch.zeros(1)):
        with pytest.raises(AssertionError):
            check_alike(other, expected, within=0.01)
