"""What a narrowed model should give, found by other means than the plan's own check.

Removed positions of the dense model are set to zero, and `layer_norm`, `group_norm`, `rms_norm`, response norms and
standardised weights are taken over the positions that stay.
"""

from __future__ import annotations


def lively(model):  # type: ignore[no-untyped-def]
    """Let norms, scales, gains and biases that start at one value vary, and those at zero be something.

    A branch that starts at zero, or at next to nothing, would hide mistakes.
    """
    import torch

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            learned = isinstance(value, torch.nn.Parameter) or name.endswith(("running_mean", "running_var"))
            if not learned or not value.numel() or not value.is_floating_point() or (value != value.flatten()[0]).any():
                continue
            if name.endswith(("bias", "beta", "running_mean")):
                value.normal_(0, 0.1)
            elif value.numel() > 1 or not value:
                value.uniform_(0.5, 1.5)
    return model


def departure(model, small, plan, x):  # type: ignore[no-untyped-def]
    """Return max|narrowed - silenced dense| / max|silenced dense| of the outputs, in float64."""
    import copy
    from functools import partial

    import torch

    from compress.core.tensors import tensors_in

    dense, small, x = copy.deepcopy(model).double(), copy.deepcopy(small).double(), x.double()
    named = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    stays, inputs = {}, {}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                gone[list(indices)] = False
                named[name].index_fill_(dim, gone.nonzero().flatten(), 0)
                stays[id(named[name])] = torch.tensor(indices)
                if dim == 1:
                    inputs[named[name].data_ptr()] = gone.numel(), torch.tensor(indices)
        for module in [*dense.modules(), *small.modules()]:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # the fused kernel takes its scale from the width of a head
        for module in dense.modules():
            if type(module).__name__ == "GlobalResponseNorm" and id(module.weight) in stays:
                module.forward = partial(response_norm, module, stays[id(module.weight)])
            elif hasattr(module, "normalized_shape") and id(module.weight) in stays:  # some are written out
                module.forward = over(module, stays[id(module.weight)])
        with norms_over(stays, inputs):
            expected = [*tensors_in(dense(x))]
        pairs = zip(tensors_in(small(x)), expected, strict=True)
        return max(float((found - each).abs().max() / each.abs().max()) for found, each in pairs)


def response_norm(module, left, x):  # type: ignore[no-untyped-def]
    """Return what ConvNeXt V2's global response norm gives when the mean of its responses is over `left` alone."""
    response = x.norm(p=2, dim=module.spatial_dim, keepdim=True)
    mean = response.index_select(module.channel_dim, left).mean(dim=module.channel_dim, keepdim=True)
    scaled = module.weight.view(module.wb_shape) * (x * (response / (mean + module.eps)))
    return x + scaled + module.bias.view(module.wb_shape)


def over(module, left):  # type: ignore[no-untyped-def]
    """Return the forward pass of a layer or RMS norm of timm over the positions `left` alone, zero elsewhere."""
    import copy

    import torch

    small, place = copy.copy(module), 1 if "2d" in type(module).__name__ else -1
    small.normalized_shape = (len(left),)
    small._parameters = {name: None if each is None else each[left] for name, each in module._parameters.items()}
    return lambda x: torch.zeros_like(x).index_copy(place, left, small(x.index_select(place, left)))


def norms_over(stays, inputs):  # type: ignore[no-untyped-def]
    """Let norms run over what stays.

    `stays`: of layer, group and RMS norms by the id of the weight the positions that stay; `inputs`: of weights that
    are themselves normalised row by row, by their address, the number of inputs and those that stay.
    """
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            if func is F.batch_norm and kwargs.get("training") and args[0].data_ptr() in inputs:
                size, left = inputs[args[0].data_ptr()]
                rows = args[0].unflatten(-1, (size, -1))
                out = func(rows.index_select(2, left).flatten(2), *args[1:], **kwargs).unflatten(-1, (len(left), -1))
                return torch.zeros_like(rows).index_copy(2, left, out).flatten(2)
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            if func not in (F.layer_norm, F.rms_norm, F.group_norm) or id(weight) not in stays:
                return func(*args, **kwargs)
            x, place = args[0], 1 if func is F.group_norm else -1
            left = stays[id(weight)]
            bias = kwargs.get("bias", args[3] if func is not F.rms_norm and len(args) > 3 else None)
            eps = kwargs.get("eps", args[-1] if isinstance(args[-1], float) else None)
            eps = {"eps": eps} if eps is not None else {}
            taken = x.index_select(place, left)
            shape = args[1] if func is F.group_norm else (len(left),)
            if func is F.rms_norm:
                out = func(taken, shape, weight[left], **eps)
            else:
                out = func(taken, shape, weight[left], None if bias is None else bias[left], **eps)
            return torch.zeros_like(x).index_copy(place, left, out)

    return Mode()
