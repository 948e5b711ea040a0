"""Operations that treat channels alike let a width through, and what is left computes the same."""

import pytest
import torch
import torchvision.ops as ops
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from compress.core.copies import copied
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import make_plan

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PADS = ("reflect", "replicate", "circular")
SIDE = {1: 12, 2: 8, 3: 6}


class Between(nn.Module):
    """A convolution, an operation, and a layer that mixes the channels that the operation gives."""

    def __init__(self, rank, operation):
        super().__init__()
        self.a = CONV[rank](3, 16, 3, padding=1)
        if isinstance(operation, nn.Module):
            self.module = operation
        self.operation = operation
        with torch.no_grad():
            width = operation(self.a(torch.randn(1, 3, *[SIDE[rank]] * rank))).shape[1]
        self.b = nn.Linear(width, 8)

    def forward(self, x):
        return self.b(self.operation(self.a(x)).flatten(2).transpose(1, 2))


def affine(module):
    """Give a normalisation scales, shifts and statistics that matter."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value.data, 0.5, 1.5) if "bias" not in name else nn.init.normal_(value.data)
    return module


def grid(x):
    size = [1, 1, *[5] * (x.dim() - 2)]
    theta = torch.eye(x.dim() - 2, x.dim() - 1)[None] * 0.9
    return F.affine_grid(theta, size, align_corners=False)


BOX = torch.tensor([[0.0, 0.0, 0.0, 6.0, 6.0], [0.0, 1.0, 2.0, 7.0, 5.0]])
BLUR = torch.tensor([1.0, 2.0, 1.0])


def blur(x):
    kernel = (BLUR[:, None] * BLUR / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def wavelets(x):
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 1, 2, 2) / 2
    parts = F.conv2d(x, signs.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])
    return F.conv_transpose2d(parts.relu(), signs.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])


def sliced(x):
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    y[..., [0, 2]] = x[..., [2, 0]]
    return y


def pixels(x):
    return x.flatten(2)


def placed(x):
    x = pixels(x)
    return x.index_copy(2, torch.tensor([4]), x[:, :, :1]).index_fill(2, torch.tensor([1]), 0)


def mixed(x):
    """Pixels picked by a boolean mask of two dimensions, moved to the end."""
    return x.permute(0, 2, 3, 1)[x.abs().sum(1) > 0][None].transpose(1, 2)


THROUGH = [
    (1, "interpolate nearest", lambda x: F.interpolate(x, scale_factor=2)),
    (1, "interpolate linear", lambda x: F.interpolate(x, scale_factor=2, mode="linear")),
    (1, "interpolate nearest-exact", lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    (1, "max_pool1d with indices", lambda x: F.max_pool1d(x, 2, return_indices=True)[0]),
    (1, "avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1)),
    (1, "adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4)),
    (1, "adaptive_max_pool1d", lambda x: F.adaptive_max_pool1d(x, 4)),
    (1, "lp_pool1d", lambda x: F.lp_pool1d(x.abs(), 2, 2)),
    (1, "max_unpool1d", lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
    *((1, f"pad {mode}", lambda x, mode=mode: F.pad(x, (2, 1), mode=mode)) for mode in PADS),
    (1, "instance norm affine", affine(nn.InstanceNorm1d(16, affine=True))),
    (1, "instance norm", nn.InstanceNorm1d(16)),
    (1, "batch norm", affine(nn.BatchNorm1d(16))),
    (1, "group norm of one channel", affine(nn.GroupNorm(16, 16))),
    (1, "depthwise transposed", affine(nn.ConvTranspose1d(16, 16, 2, 2, groups=16))),
    (1, "transposed in groups", affine(nn.ConvTranspose1d(16, 8, 3, 2, groups=4))),
    (1, "depthwise", affine(nn.Conv1d(16, 16, 3, groups=16))),
    (1, "cumsum over time", lambda x: x.cumsum(2)),
    (1, "flip, roll", lambda x: torch.roll(x.flip(2), (0, 1), (1, 2))),
    (1, "sort", lambda x: x.sort(2, descending=True)[0]),
    (1, "sort of last", lambda x: x.sort()[0]),
    (1, "topk", lambda x: x.topk(4, 2)[0]),
    (1, "kthvalue, mode", lambda x: x.kthvalue(2, 2, True)[0] + x.mode(2, True)[0]),
    (1, "cummax, cummin, cumprod", lambda x: x.cummax(2)[0] + x.cummin(-1).values + x.cumprod(2)),
    (1, "median", lambda x: x.median(2, keepdim=True)[0]),
    (1, "quantile", lambda x: x.quantile(0.3, 2, keepdim=True)),
    (1, "rfft", lambda x: torch.fft.rfft(x, n=16).abs()),
    (1, "fft, shifted", lambda x: torch.fft.fftshift(torch.fft.fft(x), 2).real),
    (1, "irfft", lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.polar(torch.ones(7), torch.arange(7.0)))),
    (1, "windows", lambda x: x.unfold(2, 4, 2).mean(-1)),
    (1, "repeat", lambda x: x.mean(2, keepdim=True).repeat(1, 1, 4) + x[:, :, :4]),
    (1, "l2 normalised", lambda x: F.normalize(x, dim=1) + F.normalize(x, dim=2)),
    (1, "differences", lambda x: x.diff(dim=2)),
    (1, "pointwise along channels", lambda x: F.conv1d(x[:, :, :2].mT, torch.ones(6, 2, 1)).mT),
    (1, "gated linear unit", lambda x: F.glu(x, 1)),
    (1, "gated by neighbours", lambda x: x[:, ::2] * x[:, 1::2].sigmoid()),
    (1, "every fourth shifted", lambda x: torch.cat([x[:, i::4].roll(i, 2) for i in range(4)], 1)),
    (1, "slopes in pairs", lambda x: x * x.sum(2).view(1, -1, 2)[..., :1].repeat(1, 1, 2).view(1, -1, 1)),
    (1, "compared, divided", lambda x: (x > 0).float() + x // 0.1 + (1 - x)),
    (1, "lengths", lambda x: x * torch.linalg.vector_norm(x, 2, [1])[:, None]),
    (2, "upsample exact", lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    (2, "upsample antialiased", lambda x: F.interpolate(x, (5, 5), mode="bilinear", antialias=True)),
    (2, "upsample bicubic", lambda x: F.interpolate(x, (5, 9), mode="bicubic")),
    (2, "area", lambda x: F.interpolate(x, (4, 4), mode="area")),
    (2, "grid_sample", lambda x: F.grid_sample(x, grid(x), align_corners=False)),
    (2, "roi_align", lambda x: ops.roi_align(x, BOX, 3).flatten(2).transpose(0, 2).flatten(2).transpose(0, 2)[:1]),
    (2, "roi_pool", lambda x: ops.roi_pool(x, BOX[:1], 3)),
    (2, "ps_roi_align", lambda x: ops.ps_roi_align(x, BOX[:1], 2)),
    (2, "ps_roi_pool", lambda x: ops.ps_roi_pool(x, BOX[:1], 2)),
    *((2, f"pad {mode} 2-D", lambda x, mode=mode: F.pad(x, (1, 2, 1, 0), mode=mode)) for mode in PADS),
    (2, "max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    (2, "pixel shuffles", lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    (2, "pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2)),
    (2, "channel_shuffle", lambda x: F.channel_shuffle(x, 4)),
    (2, "unfold and fold", lambda x: F.fold(F.unfold(x, 2, stride=2), x.shape[-2:], 2, stride=2)),
    (2, "unfold", lambda x: F.unfold(x, 3)),
    (2, "instance norm affine 2-D", affine(nn.InstanceNorm2d(16, affine=True, track_running_stats=True))),
    (2, "prelu", affine(nn.PReLU(16))),
    (2, "rfft2", lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])),
    (2, "gather pixels", lambda x: pixels(x).gather(2, torch.zeros_like(pixels(x)[..., :4], dtype=torch.long))),
    (2, "take along", lambda x: torch.take_along_dim(pixels(x), pixels(x).argsort(2), 2)),
    (2, "index pixels", lambda x: pixels(x)[:, :, [0, 3, 5]]),
    (2, "index_select", lambda x: pixels(x).index_select(2, torch.tensor([3, 1]))),
    (2, "boolean mask", mixed),
    (2, "scatter", lambda x: torch.zeros_like(pixels(x)).scatter(2, pixels(x).argsort(2), pixels(x))),
    (2, "scatter_add", lambda x: torch.zeros_like(pixels(x)).scatter_add(2, pixels(x).argsort(2) // 2, pixels(x))),
    (2, "scatter_reduce", lambda x: pixels(x).scatter_reduce(2, pixels(x).argsort(2) // 2, pixels(x), "amax")),
    (2, "index_add", lambda x: pixels(x).index_add(2, torch.tensor([0, 1]), pixels(x)[:, :, :2])),
    (2, "index_copy, index_fill", placed),
    (2, "assigned slices", sliced),
    (2, "masked assignment", lambda x: x.masked_fill(x > 0.3, 0.0)),
    (2, "rot90", lambda x: torch.rot90(x, 1, (2, 3))[..., :3]),
    (2, "diagonal", lambda x: x.diagonal(dim1=2, dim2=3)),
    (2, "tril", lambda x: x.tril()),
    (2, "tensor_split", lambda x: torch.cat(torch.tensor_split(x, 2, 2), 3)),
    (2, "einsum", lambda x: torch.einsum("bchw,bcij->bcw", x, x)),
    (2, "cdist", lambda x: x * torch.cdist(pixels(x).mT, pixels(x).mT).mean((1, 2))[:, None, None, None]),
    (2, "cdist of few", lambda x: x * torch.cdist(pixels(x)[..., :9].mT, pixels(x)[..., :9].mT, p=1).mean()),
    (2, "blur", blur),
    (2, "wavelets", wavelets),
    (2, "deformed", lambda x: ops.deform_conv2d(x, torch.full((1, 2, 8, 8), 0.3), torch.ones(5, x.shape[1], 1, 1))),
    (3, "trilinear", lambda x: F.interpolate(x, scale_factor=2, mode="trilinear")),
    (3, "nearest 3-D", lambda x: F.interpolate(x, scale_factor=2)),
    (3, "adaptive pools", lambda x: F.adaptive_avg_pool3d(x, 2) + F.adaptive_max_pool3d(x, 2)),
    (3, "pools 3-D", lambda x: F.max_pool3d(x, 2) + F.avg_pool3d(x, 2)),
    (3, "pad replicate 3-D", lambda x: F.pad(x, (1,) * 6, mode="replicate")),
    (3, "pad reflect 3-D", lambda x: F.pad(x, (1,) * 6, mode="reflect")),
    (3, "instance norm affine 3-D", affine(nn.InstanceNorm3d(16, affine=True))),
    (3, "grid_sample 3-D", lambda x: F.grid_sample(x, grid(x), align_corners=False)),
]  # fmt: skip


def narrowed(model, x, layer, scaled=()):
    """Prune half of the units of the groups of `layer`; return the outputs of silenced dense and narrowed model.

    Rows of the tensors `scaled` are divided by their length: they are silenced where they are used.
    """
    graph = checked(model, build_graph(model, x), x)
    groups = [group for group in graph.groups if group.name.startswith(f"{layer}:")]
    assert groups, [skip for skip in graph.skipped if skip.layer == layer]
    generator = torch.Generator().manual_seed(1)
    order = {group.name: torch.randperm(group.size, generator=generator) for group in groups}
    silenced = copied(model)
    with torch.no_grad():
        for group in groups:
            for part in group.slices:
                gone = part.positions[order[group.name][: group.size // 2]].reshape(-1)
                quiet = "bias" in part.tensor.rpartition(".")[2] or (
                    part.role == "out" and not part.tensor.endswith(scaled)
                )
                if part.role == "in" or quiet:
                    silenced.get_parameter(part.tensor).index_fill_(part.dim, gone, 0.0)
        kept = {name: units[len(units) // 2 :].sort().values for name, units in order.items()}
        plan = make_plan(model, graph, kept)
        assert plan.params[1] < plan.params[0]
        return silenced(x), apply(plan, model)(x)


@pytest.mark.parametrize(("rank", "operation"), [pytest.param(r, f, id=n) for r, n, f in THROUGH])
def test_an_operation_on_every_channel_lets_the_width_through_exactly(rank, operation):
    torch.manual_seed(0)
    model = Between(rank, operation).eval()
    dense, small = narrowed(model, torch.randn(1, 3, *[SIDE[rank]] * rank), "a")
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


class Deformed(nn.Module):
    def __init__(self, offset_groups, masked):
        super().__init__()
        self.a, self.offset = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 18 * offset_groups, 3, padding=1)
        self.mask = nn.Conv2d(16, 9 * offset_groups, 1) if masked else None
        self.deformed, self.b = ops.DeformConv2d(16, 12, 3, padding=1), nn.Conv2d(12, 8, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.deformed(x, self.offset(x), self.mask(x).sigmoid() if self.mask else None))


@pytest.mark.parametrize(("offset_groups", "masked"), [(1, False), (2, True)])
def test_a_deformed_convolution_is_a_layer_and_lets_its_inputs_shrink(offset_groups, masked):
    model = Deformed(offset_groups, masked).eval()
    for layer in ("a", "deformed"):
        dense, small = narrowed(model, torch.randn(1, 3, 8, 8), layer)
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


WRAPS = (weight_norm, spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_parametrised_convolutions_are_narrowed_under_their_own_name_and_rebuilt(wrap):
    def build():
        layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), wrap(nn.Conv2d(12, 16, 3)), nn.ReLU(), nn.Conv2d(16, 4, 1)]
        return nn.Sequential(*layers).eval()

    model, x = build(), torch.randn(1, 3, 8, 8)
    for layer in ("0", "2"):
        dense, small = narrowed(model, x, layer, ("original1", "weight_v"))
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)
    graph = build_graph(model, x)
    plan = make_plan(model, graph, {group.name: torch.arange(5) for group in graph.groups})
    small, again = apply(plan, model), apply(plan, build())
    assert again[2].in_channels == again[2].out_channels == 5
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again(x), small(x))


class Pair(nn.Module):
    """Two branches that meet in a bilinear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.head = nn.Linear(3, 8), nn.Linear(3, 6), nn.Bilinear(8, 6, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.both(self.a(x).relu(), self.b(x).relu()).relu())


def test_a_bilinear_layer_is_narrowed_along_all_three_dimensions():
    model, x = Pair(), torch.randn(1, 3)
    for layer in ("a", "b", "both"):
        dense, small = narrowed(model, x, layer)
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """A recurrent layer in two directions over the columns of an image."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.rnn = nn.Conv1d(3, 12, 3), kind(12, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        return self.head(self.rnn(self.a(x).mT)[0].mean(1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_recurrent_layers_keep_one_hidden_size(kind):
    model, x = Recurrent(kind), torch.randn(1, 3, 8)
    for layer in ("a", "rnn"):
        dense, small = narrowed(model, x, layer)
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)
    assert torch.backends.mkldnn.enabled


class Steps(nn.Module):
    """An LSTM with projections, and cells that are run step by step."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 16, 2, batch_first=True, proj_size=10)
        self.gru, self.lstm, self.plain = nn.GRUCell(10, 12), nn.LSTMCell(12, 14), nn.RNNCell(14, 18)
        self.head = nn.Linear(18, 4)

    def forward(self, x):
        gru = lstm = plain = None
        for step in self.rnn(x)[0].unbind(1):
            gru = self.gru(step, gru)
            lstm = self.lstm(gru, lstm)
            plain = self.plain(lstm[0], plain)
        return self.head(plain)


def test_projections_and_recurrent_cells_are_narrowed():
    model, x = Steps().eval(), torch.randn(1, 5, 6)
    for layer in ("rnn", "gru", "lstm", "plain"):
        dense, small = narrowed(model, x, layer)
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)
    graph = build_graph(model, x)
    small = apply(make_plan(model, graph, {group.name: torch.arange(5) for group in graph.groups}), model)
    assert (small.rnn.hidden_size, small.rnn.proj_size, small.lstm.hidden_size) == (5, 5, 5)


class Ahead(nn.Module):
    """A table of its own, which the forward pass forms anew by numbers."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(8, 12)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x @ self.table.view(4, 2, 3, 4).flatten(2).permute(2, 0, 1).flatten(1))


def test_parameters_of_the_models_own_that_stay_whole_are_named():
    model, x = Ahead(), torch.randn(1, 12)
    graph = checked(model, build_graph(model, x), x)
    assert "table" in {skip.layer.partition(":")[0] for skip in graph.skipped}


class Raw(nn.Module):
    """A gated kernel, a scaled matrix and a stack of matrices, none of them in a layer of torch's own."""

    def __init__(self):
        super().__init__()
        self.kernel, self.gain = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.rand(8, 1, 1, 1))
        self.matrix, self.table = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(5, 12, 4))
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        y = F.conv2d(x, self.kernel * self.gain).mean((2, 3)).relu()
        y = (y @ (self.matrix / self.matrix.norm(dim=0))).relu()
        return self.head(torch.einsum("bi,kio->bko", y, self.table).flatten(1))


def test_raw_parameters_are_layers_with_outputs_and_inputs():
    model, x = Raw(), torch.randn(1, 3, 8, 8)
    graph = build_graph(model, x)
    roles = {(part.tensor, part.dim): part.role for group in graph.groups for part in group.slices}
    assert roles["kernel", 0] == roles["matrix", 1] == roles["table", 2] == "out"
    assert roles["matrix", 0] == roles["table", 1] == "in"
    assert roles["gain", 0] == "vector"
    for layer in ("kernel", "matrix"):
        dense, small = narrowed(model, x, layer, ("matrix",))
        torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)
