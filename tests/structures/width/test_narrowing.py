"""A narrower model: within its budget, the better channels stay, and it can be built again from what is kept of it."""

import copy

import pytest
import timm
import torch

import lpvit
from lpvit.allocation.settings import Budget
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.models.architecture import Architecture, load_model, save_model
from lpvit.structures.width.edit import NarrowerShapes
from lpvit.structures.width.narrowing import narrow
from lpvit.structures.width.settings import Width
from lpvit.structures.width.structure import WidthStructure

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module", params=["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def model(request):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=7, pretrained_cfg_overlay={"input_size": (3, 32, 32)}, **SMALL)
    return model.eval()


@pytest.fixture(scope="module")
def calibration():
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [(images[:4], torch.zeros(4)), (images[4:], torch.zeros(4))]


@pytest.fixture(scope="module")
def narrower(model, calibration):
    return narrow(model, calibration, 0.5)


def macs(model) -> int:
    return int(measure_costs(model)["macs"].sum())


def test_the_widest_model_within_the_budget(model, calibration):
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    narrower = narrow(model, calibration, 0.4)
    assert 0.35 < macs(narrower) / macs(model) <= 0.4
    assert narrower(calibration[0][0]).shape == (4, 7)
    attention = narrower.blocks[1].attn
    assert attention.num_heads == 3
    assert attention.head_dim < model.blocks[1].attn.head_dim
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())


def test_reconstructed_it_is_as_wide_and_nearer_to_the_dense_model_on_other_images(model):
    torch.manual_seed(2)
    images = torch.randn(96, 3, 32, 32)
    calibration = [(images[:32], None), (images[32:64], None)]
    dense = model(images[64:])
    distortions = []
    for reconstruct in (False, True):
        narrower = narrow(model, calibration, 0.5, reconstruct)
        distortions.append((macs(narrower), (narrower(images[64:]) - dense).square().sum().item()))
    (before, plain), (after, fitted) = distortions
    assert after == before
    assert fitted < 0.5 * plain


def test_channels_that_do_nothing_go_first(model, calibration):
    model = copy.deepcopy(model)
    mlp = model.blocks[0].mlp
    idle = torch.arange(mlp.fc1.out_features) % 2 == 0
    with torch.no_grad():
        for parameter in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight.T):
            parameter[idle] = 0.0
    narrower = narrow(model, calibration, 0.5)
    kept = narrower.blocks[0].mlp.fc1.weight.abs().sum(dim=1) > 0
    assert kept.sum() == (~idle).sum()
    assert len(kept) < len(idle)


def test_it_is_built_again_from_its_artifact(model, narrower, calibration, tmp_path):
    architecture = Architecture.of(narrower, {**SMALL})
    save_model(architecture, narrower.state_dict(), tmp_path / "narrower.pt", "pruned")
    read, state = load_model(tmp_path / "narrower.pt", "pruned")
    assert torch.equal(read.build(state)(calibration[0][0]), narrower(calibration[0][0]))
    assert macs(read.build(state)) == macs(narrower)

    lpvit.save(lpvit.Pruned(narrower, {}, (8, 8)), tmp_path / "narrower.safetensors", options=SMALL)
    again = lpvit.load(tmp_path / "narrower.safetensors").model
    assert torch.equal(again(calibration[0][0]), narrower(calibration[0][0]))


def test_it_trains(narrower, calibration):
    narrower = copy.deepcopy(narrower).train()
    narrower(calibration[0][0]).square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in narrower.named_parameters() if "head" not in name)


def test_shapes_of_another_model_are_refused(model):
    architecture = Architecture.of(model, {**SMALL})
    other = architecture.with_edits([NarrowerShapes(shapes={"blocks.7.mlp.fc1.weight": (3, 4)})])
    with pytest.raises(LpvitError, match=r"no parameter 'blocks\.7\.mlp\.fc1\.weight'"):
        other.build()


def test_what_cannot_be_narrowed_is_told(model, calibration, monkeypatch):
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(1, 1))
    with pytest.raises(LpvitError, match="narrows ViT and DeiT, not SwinTransformer"):
        narrow(swin, calibration, 0.5)
    with pytest.raises(LpvitError, match="no width of this model is within macs 1e-09"):
        narrow(model, calibration, 1e-9)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LpvitError, match=r"pip install 'lpvit\[width\]'"):
        narrow(model, calibration, 0.5)


def test_width_takes_a_budget_of_macs_and_a_reconstruction():
    Width().require_budget(Budget(macs=0.5, reconstruction="least_squares"))
    for other in ({"macs": 0.5, "steps": 4}, {"macs": 0.5, "energy": 0.5}, {"macs": 0.5, "allocator": "exact"}):
        with pytest.raises(ValueError, match=f"budget of 'macs' and 'reconstruction', not '{list(other)[1]}'"):
            Width().require_budget(Budget(**other))
    with pytest.raises(ValueError, match="budget of 'macs' and 'reconstruction', not 'sparsity'"):
        Width().require_budget(Budget(sparsity=0.5))


def test_the_library_makes_models_narrower_and_says_what_they_cost(model, calibration, tmp_path):
    pruned = lpvit.prune(model, calibration, budget=0.5, pruning=lpvit.Width())
    dense = measure_costs(model).set_index("layer")
    assert pruned.report.loc["(dense model)", "macs"] == dense["macs"].sum()
    assert pruned.report.loc["(model)", "macs"] == macs(pruned.model)
    assert 0.4 < pruned.report.loc["(model)", "keep_ratio"] <= 0.5
    lpvit.save(pruned, tmp_path / "narrower.safetensors", options=SMALL)
    again = lpvit.load(tmp_path / "narrower.safetensors")
    assert again.report.equals(pruned.report)
    with pytest.raises(LpvitError, match=r"^budget: structure 'width' takes a budget of 'macs'"):
        lpvit.prune(model, calibration, budget=lpvit.Budget(sparsity=0.5), pruning=lpvit.Width())


def test_what_no_width_reaches_is_found_from_shapes_alone(model, calibration):
    structure = WidthStructure()
    with pytest.raises(LpvitError, match=r"^budget: no width of this model is within macs 0\.001; raise 'macs'"):
        structure.require_reachable(copy.deepcopy(model).to("meta"), 0.001)
    narrowest = macs(narrow(model, calibration, 0.06)) / macs(model)
    structure.require_reachable(model, narrowest)  # the gradients do not matter
