import pytest
import torch
from torch import nn

from nnunet_mn.teaching import same_in_eval


@pytest.mark.parametrize(
    ("layer", "same"),
    [
        (nn.InstanceNorm3d(2), True),
        (nn.GroupNorm(1, 2), True),
        (nn.BatchNorm3d(2), False),
        (nn.Dropout3d(0.1), False),
        (nn.Dropout3d(0.0), True),
    ],
)
def test_which_networks_say_the_same_in_train_and_eval_mode(layer: nn.Module, same: bool) -> None:
    assert same_in_eval(nn.Sequential(layer)) is same
    assert same_in_eval(nn.Sequential(layer).eval())


def test_a_rate_that_a_layer_applies_itself_counts() -> None:
    class Attention(nn.Module):
        attention_dropout = 0.1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, self.attention_dropout, self.training)

    assert not same_in_eval(Attention())
    assert same_in_eval(Attention().eval())
