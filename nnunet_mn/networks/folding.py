"""Convolutions with their batch norm inside: one pass over the activations is saved."""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

_SAME = "Conv2dSame"  # timm's convolution with TensorFlow's padding: it depends on the size of the input


class NormedConv(nn.Module):
    """A convolution and its batch norm; with fixed statistics both are one convolution, trainable as before.

    Args:
        conv: the convolution; LoRA may wrap it later.
        norm: its batch norm, with weight, bias and running statistics.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        # MobileNet pads by them
        self.stride, self.kernel_size, self.dilation = conv.stride, conv.kernel_size, conv.dilation

    def forward(self, maps: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        mean, variance = norm.running_mean, norm.running_var
        if norm.training or mean is None or variance is None or not isinstance(conv, nn.Conv2d):
            normed: Tensor = norm(conv(maps))
            return normed
        scale = norm.weight * torch.rsqrt(variance + norm.eps)  # (K,)
        mean = mean if conv.bias is None else mean - conv.bias
        padding: str | tuple[int, ...] = conv.padding
        if type(conv).__name__ == _SAME:
            maps, padding = _pad_same(maps, conv), (0, 0)
        return functional.conv2d(
            maps,
            conv.weight * scale.view(-1, 1, 1, 1),
            torch.addcmul(norm.bias, mean, scale, value=-1),
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
        )


def _pad_same(maps: Tensor, conv: nn.Conv2d) -> Tensor:
    """Add zeros around maps: a convolution then returns ceil(size / stride) cells. An odd zero goes to the end."""
    pads: list[int] = []
    for size, kernel, stride, dilation in zip(
        maps.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True
    ):
        total = max(((size - 1) // stride) * stride + (kernel - 1) * dilation + 1 - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(maps, pads) if any(pads) else maps


def fold_norms(model: nn.Module, image: Tensor) -> None:
    """Join every convolution with the batch norm directly after it, in place; outputs stay the same.

    Args:
        model: images to anything, in evaluation mode.
        image: (1, 3, H, W), of any content; one pass with it shows the order of the layers.
    """
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in _follow(model, image):
        _replace(model, names[conv], NormedConv(conv, _plain(norm)))
        _replace(model, names[norm], _rest(norm))


def _follow(model: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the batch norm of its output, each used once."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []
    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d or type(module).__name__ == _SAME:
            hooks.append(module.register_forward_hook(lambda m, _, output: outputs.append((m, output))))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0]))))
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    uses = Counter(module for module, _ in [*outputs, *inputs])
    producer = {id(output): conv for conv, output in outputs}
    pairs = [(producer[id(seen)], norm) for norm, seen in inputs if id(seen) in producer]
    return [(conv, norm) for conv, norm in pairs if uses[conv] == uses[norm] == 1]


def _plain(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The same batch norm without additions of a library; `_rest` keeps those."""
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    plain.num_batches_tracked = norm.num_batches_tracked
    return plain.train(norm.training)


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """The rest of a batch norm: timm's contains the activation."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
