"""Tables and figures from synthetic results of a 12-block ViT, in shape and size like DeiT-S."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lpvit.measure.intervals import wilson
from lpvit.report import drawing, formats, layers, style
from lpvit.report.catalogue import figure_files
from lpvit.report.drawing import draw
from lpvit.report.series import series_of
from lpvit.report.tables import summary as tables
from lpvit.store.schemas import ALLOCATION, COSTS, CURVES, HISTORY, METRICS
from lpvit.store.tables import write_parquet

DEPTH, WIDTH, TOKENS, BLOCK = 12, 384, 197, 16
SHAPES = {"qkv": (3 * WIDTH, WIDTH), "proj": (WIDTH, WIDTH), "fc1": (4 * WIDTH, WIDTH), "fc2": (WIDTH, 4 * WIDTH)}
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def drawn(name: str, *inputs: Any) -> Figure:
    """A figure by its name, from its inputs in order."""
    figure = figure_files()[name]
    return draw(name, dict(zip((*figure.needs, *figure.takes), inputs, strict=False)))


def costs(depth: int = DEPTH) -> pd.DataFrame:
    inside = [
        (f"blocks.{i}.{PATHS[role]}", role, *shape, TOKENS) for i in range(depth) for role, shape in SHAPES.items()
    ]
    layers = [("patch_embed.proj", "patch_embed", WIDTH, 768, TOKENS - 1), *inside, ("head", "head", 1000, WIDTH, 1)]
    frame = pd.DataFrame(layers, columns=["layer", "role", "out_features", "in_features", "tokens"])
    frame["parameters"] = frame["out_features"] * (frame["in_features"] + 1)
    return frame.assign(macs=frame["out_features"] * frame["in_features"] * frame["tokens"])


def prunable(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["role"].isin(SHAPES)].reset_index(drop=True)


def curves(frame: pd.DataFrame, points: int = 51) -> pd.DataFrame:
    random = np.random.default_rng(0)
    sparsity = np.linspace(0, 1, points)
    layers = []
    for row in prunable(frame).itertuples():
        blocks = row.out_features * row.in_features // BLOCK**2
        pruned = np.round(sparsity * blocks).astype(int)
        strength = 3 * np.exp(-0.18 * row.Index + random.normal(0, 0.3))
        distortion = strength * (sparsity**2.2 + 0.02 * sparsity + 2 * sparsity**12)
        columns = {"sparsity": sparsity, "blocks_pruned": pruned, "weights_pruned": pruned * BLOCK**2}
        layers.append(pd.DataFrame({"layer": row.layer, **columns, "distortion": distortion}))
    return pd.concat(layers, ignore_index=True)


def allocation(frame: pd.DataFrame, budget: str = "macs") -> pd.DataFrame:
    random = np.random.default_rng(1)
    layers = prunable(frame)
    blocks = layers["out_features"] * layers["in_features"] // BLOCK**2
    keep_ratio = np.clip(0.75 - 0.012 * layers.index + random.normal(0, 0.1, len(layers)), 0.05, 1)
    kept = (keep_ratio * blocks).astype(int)
    return pd.DataFrame(
        {
            "layer": layers["layer"],
            "blocks": blocks,
            "blocks_kept": kept,
            "keep_ratio": kept / blocks,
            "macs_dense": layers["macs"],
            "macs_kept": layers["macs"] * kept // blocks,
            "budget": budget,
            "target": 0.5,
            "achieved": 0.49987,
            "second_budget": None,
            "second_target": np.nan,
            "second_achieved": np.nan,
        }
    )


def keep_masks(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    masks = {}
    for row in allocation(frame).merge(frame, on="layer").itertuples():
        shape = row.out_features // BLOCK, row.in_features // BLOCK
        scores = random.normal(size=shape) + random.normal(size=(shape[0], 1)) + random.normal(size=(1, shape[1]))
        masks[row.layer] = scores > np.quantile(scores, 1 - row.keep_ratio)
    return masks


def evaluation(stage: str, top1: float, share: float, **names: str) -> dict[str, object]:
    return {
        "stage": stage,
        "images": 10000,
        "images_skipped": 0,
        "top1": top1,
        "top5": top1 + (100 - top1) * 0.8,
        "loss": 1.0,
        **dict.fromkeys(tables.WITHOUT_CLASSES, np.nan),
        "macs": round(4.24e9 * share),
        "macs_all": round(4.24e9 * share + 3.6e8),
        "parameters": round(22.05e6 * share),
        "sparsity": 1 - share,
        "power_term": share,
        "energy": 1e-3 * (share if share == 1 else share - 0.1),
        **names,
    }


def evaluations() -> pd.DataFrame:
    """Five experiments on one dense model, one without fine-tuning."""
    rows = []
    found = {
        "half": (0.5, 61.0, 80.4),
        "third": (0.35, 35.7, 78.2),
        "uniform": (0.5, 14.7, 76.9),
        "taylor": (0.5, 27.1, 79.0),
    }
    for name, (share, pruned, finetuned) in found.items():
        names = {"dataset": "imagenet", "model": "deit_s", "experiment": name}
        rows += [evaluation("dense", 81.2, 1.0, **names), evaluation("pruned", pruned, share, **names)]
        rows += [evaluation("finetuned", finetuned, share, **names)]
    names = {"dataset": "imagenet", "model": "deit_s", "experiment": "most"}
    rows += [evaluation("dense", 81.2, 1.0, **names), evaluation("pruned", 74.9, 0.8, **names)]
    return pd.DataFrame(rows)


def history(epochs: int = 100) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    noise = np.random.default_rng(3).normal(0, 0.02, epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "learning_rate": 5e-4 * np.minimum(epoch / 5, 0.5 * (1 + np.cos(np.pi * epoch / epochs))),
            "train_loss": 3 + 3 * np.exp(-epoch / 20) + noise,
            "validation_loss": 1 + 4 * np.exp(-epoch / 12) + noise,
            "top1": 81 - 70 * np.exp(-epoch / 12) + 10 * noise,
            "cosine": np.nan,
            "held_out_top1": np.nan,
            "held_out_cosine": np.nan,
            "seconds": 60.0,
        }
    )


def lines(figure: Figure) -> list[str]:
    """Every text of a figure that is drawn."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]


def test_the_synthetic_frames_fit_the_schemas(tmp_path: Path) -> None:
    frames = [(costs(), COSTS), (curves(costs()), CURVES), (allocation(costs()), ALLOCATION), (history(), HISTORY)]
    metrics = evaluations().drop(columns=["dataset", "model", "experiment"])
    for frame, schema in [*frames, (metrics, METRICS)]:
        write_parquet(frame, tmp_path / schema.file, schema)


def test_summary_has_the_dense_model_once_and_every_other_row() -> None:
    table = tables.summary(evaluations())
    assert table["stage"].tolist() == ["dense", *["pruned", "finetuned"] * 4, "pruned"]
    assert table["experiment"].tolist()[:3] == ["", "half", "half"]
    assert table["macs_ratio"].to_numpy() == pytest.approx([1, 0.5, 0.5, 0.35, 0.35, 0.5, 0.5, 0.5, 0.5, 0.8])


def test_summary_relates_every_model_to_its_own_dense_model() -> None:
    small = evaluations().assign(model="deit_t", macs=lambda rows: rows["macs"] // 4)
    first = evaluations()[evaluations()["experiment"] == "half"]
    table = tables.summary(pd.concat([first, small, evaluations().assign(dataset="other")]))
    dense = table[table["stage"] == "dense"]
    assert dense[["dataset", "model"]].to_numpy().tolist() == [
        ["imagenet", "deit_s"],
        ["imagenet", "deit_t"],
        ["other", "deit_s"],
    ]
    assert (dense["macs_ratio"] == 1).all()
    assert table.groupby(["dataset", "model"], sort=False)["stage"].first().tolist() == ["dense"] * 3
    halves = table[(table["experiment"] == "half") & (table["stage"] == "pruned")]
    assert halves["macs_ratio"].to_numpy() == pytest.approx(0.5)


def test_summary_survives_csv_also_with_names_that_look_like_numbers_or_nothing(tmp_path: Path) -> None:
    table = tables.summary(evaluations().replace({"experiment": {"half": "001", "third": "NA"}}))
    table.to_csv(tmp_path / "summary.csv", index=False)
    pd.testing.assert_frame_equal(tables.read_summary(tmp_path / "summary.csv"), table)


def test_a_missing_power_term_stays_missing(tmp_path: Path) -> None:
    rows = evaluations()
    rows["power_term"] = rows["power_term"].mask(rows["experiment"] == "half")
    table = tables.summary(rows)
    table.to_csv(tmp_path / "summary.csv", index=False)
    pd.testing.assert_frame_equal(tables.read_summary(tmp_path / "summary.csv"), table)
    assert tables.to_markdown(table).splitlines()[3].split("|")[-3].strip() == "-"


def test_markdown_is_aligned_and_in_human_units() -> None:
    rows = tables.to_markdown(tables.summary(evaluations())).splitlines()
    assert len({len(row) for row in rows}) == 1
    cells = [cell.strip() for cell in rows[3].strip("|").split("|")]
    assert cells[:6] == ["imagenet", "deit_s", "half", "pruned", "61.00 %", "60.0 to 62.0"]
    assert cells[6:9] == ["92.20 %", "2.12 G", "50.0 %"]
    assert cells[9:] == ["2.48 G", "11.0 M", "50.0 %", "50.0 %", "40.0 %"]


def test_images_that_were_left_out_are_told() -> None:
    assert tables.left_out(evaluations()) == ""
    (line,) = tables.left_out(evaluations().assign(images_skipped=3)).strip().splitlines()
    images = evaluations()["images"].iloc[0]
    assert line == f"imagenet: 3 of {images + 3} validation images cannot be decoded and are skipped."


@pytest.mark.parametrize(
    ("energy", "text"),
    [(1.5, "1.50 J"), (0.25, "250 mJ"), (0.0015, "1.50 mJ"), (8.15e-5, "81.5 µJ"), (2e-9, "2 nJ"), (2.5e-9, "2.50 nJ")],
)
def test_energies_stand_in_the_unit_that_fits(energy: float, text: str) -> None:
    assert formats.joules(energy) == text


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1.5, "1.50"),
        (0.25, "0.25"),
        (1000, "1.00 k"),
        (74_999, "75.0 k"),
        (999_499, "999 k"),
        (999_501, "1.00 M"),
        (22_050_664, "22.1 M"),
        (4_608_338_304, "4.61 G"),
        (17.58e9, "17.6 G"),
    ],
)
def test_quantities_have_three_digits_and_a_prefix(quantity: float, text: str) -> None:
    assert formats.human(quantity) == text


def test_curves_have_a_panel_for_each_role_and_a_line_for_each_layer() -> None:
    figure = drawn("curves", curves(costs()), costs(), "logit² per image")
    panels = figure.axes[:4]
    assert [panel.get_title("left") for panel in panels] == list(SHAPES)
    assert all(len(panel.lines) == DEPTH for panel in panels)
    assert all(panel.get_yscale() == "log" for panel in panels)
    assert {"share of the layer removed (%)", "distortion (logit² per image)", "transformer block"} <= set(
        lines(figure)
    )


def test_a_curve_shows_its_points_and_leaves_out_zero() -> None:
    frame = curves(costs())
    line = drawn("curves", frame, costs(), "arbitrary units").axes[0].lines[0]
    curve = frame[frame["layer"] == "blocks.0.attn.qkv"]
    removed = 100 * curve["weights_pruned"] / curve["weights_pruned"].iloc[-1]
    assert line.get_xdata() == pytest.approx(removed.to_numpy()[1:])
    assert line.get_ydata() == pytest.approx(curve["distortion"].to_numpy()[1:])


def test_depth_counts_transformer_blocks_also_over_the_stages_of_a_swin() -> None:
    names = [
        "patch_embed.proj",
        "layers.0.blocks.0.attn.qkv",
        "layers.0.blocks.0.mlp.fc1",
        "layers.0.blocks.1.attn.qkv",
    ]
    names += ["layers.1.downsample.reduction", "layers.1.blocks.0.attn.qkv", "head.fc"]
    frame = pd.DataFrame({"layer": names, "role": [name.split(".")[-1] for name in names]})
    placed = layers.place_layers(frame, names)
    assert placed["depth"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert placed["label"].tolist()[1:4] == ["qkv 0.0", "fc1 0.0", "qkv 0.1"]


def test_figures_count_transformer_blocks_as_the_model_does() -> None:
    placed = layers.place_layers(costs(), costs()["layer"])
    inside = placed[placed.index.str.startswith("blocks.")]
    assert (inside["label"] == [f"{row.role} {name.split('.')[1]}" for name, row in inside.iterrows()]).all()
    assert (inside["depth"] == inside.index.str.split(".").str[1].astype(int)).all()
    assert placed.loc["head", "label"] == "head"


def test_allocation_has_a_panel_for_each_role_and_a_bar_as_high_as_each_keep_ratio() -> None:
    frame = allocation(costs())
    panels = drawn("allocation", frame.sample(frac=1, random_state=0), costs()).axes
    assert [panel.get_title("left") for panel in panels] == list(SHAPES)
    for panel, path in zip(panels, PATHS.values(), strict=True):
        of_role = frame[frame["layer"].str.endswith(path)]
        bars = sorted(panel.patches, key=lambda bar: bar.get_x())
        kept = of_role["macs_kept"] / of_role["macs_dense"]
        assert [bar.get_height() for bar in bars] == pytest.approx((100 * kept).tolist())
        assert (bars[0].get_x() + bars[0].get_width() / 2) == pytest.approx(0)


def factors() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Allocation and curves of ranks in multiples of 8; the first layer stays dense."""
    layers = prunable(costs())
    curves = [
        pd.DataFrame(
            {
                "layer": layer,
                "blocks_pruned": np.arange(5),
                "weights_pruned": [0, 10, 20, 30, 40],
                "distortion": [0, 1e-9, 0.01, 0.1, 2],
            }
        )
        for layer in layers["layer"]
    ]
    kept = allocation(costs()).assign(blocks=4, blocks_kept=1)
    kept.loc[0, "blocks_kept"] = 4
    return kept, pd.concat(curves, ignore_index=True)


def test_ranks_are_marked_on_the_spectrum_of_their_layer_and_dense_layers_are_counted() -> None:
    kept, curves = factors()
    figure = drawn("ranks", kept, curves, costs(), 8)
    panels = figure.axes[:4]
    assert [panel.get_title("left") for panel in panels] == ["qkv, 1 dense", "proj", "fc1", "fc2"]
    spectrum = panels[1].lines[0]
    assert spectrum.get_xydata() == pytest.approx(np.array([[0, 1], [8, 0.05], [16, 0.005]]))  # 1e-9 is rounding
    marks = [line for line in panels[1].lines if line.get_marker() == "o"]
    assert len(marks) == DEPTH
    assert marks[0].get_xydata() == pytest.approx(np.array([[8, 0.05]]))
    assert marks[0].get_label() == "blocks.0.attn.proj, rank 8"


def test_the_figure_of_an_allocation_speaks_of_ranks_where_there_are_some() -> None:
    kept, _ = factors()
    panel = drawn("allocation", kept, costs(), 8).axes[0]
    assert [bar.get_label() for bar in panel.patches[:2]] == ["blocks.0.attn.qkv: dense", "blocks.1.attn.qkv: rank 8"]


@pytest.mark.parametrize(("budget", "name"), [("macs", "MACs kept"), ("sparsity", "sparsity of the prunable layers")])
def test_allocation_tells_target_and_achieved(budget: str, name: str) -> None:
    frame = allocation(costs(), budget)
    title, *_ = [text for text in lines(drawn("allocation", frame, costs())) if "target" in text]
    assert title.startswith(name)
    share = 100 * frame["macs_kept"].sum() / frame["macs_dense"].sum()
    assert title.endswith(f"49.99 % (target 50.00 %); these layers (dashed): {share:.1f} %")


def test_blocks_show_first_middle_and_last_layer_of_each_role_outputs_down_inputs_across() -> None:
    masks = keep_masks(costs())
    figure = drawn("blocks", masks, costs())
    images = figure.axes[0].images
    assert len(images) == 12
    for image, layer in ((images[0], "blocks.0.attn.qkv"), (images[-1], "blocks.11.mlp.fc2")):
        left, right, bottom, top = image.get_extent()
        assert (bottom - top, right - left) == pytest.approx(masks[layer].shape)
        assert np.array_equal(image.get_array(), masks[layer])
    kept = 100 * masks["blocks.6.mlp.fc1"].mean()
    assert f"fc1 6: {kept:.0f} %" in lines(figure)


@pytest.mark.parametrize("depth", [1, 12])
def test_grids_of_blocks_do_not_overlap(depth: int) -> None:
    images = drawn("blocks", keep_masks(costs(depth)), costs(depth)).axes[0].images
    cells = [
        {(x, y) for x in range(round(left), round(right)) for y in range(round(top), round(bottom))}
        for left, right, bottom, top in (image.get_extent() for image in images)
    ]
    assert len(cells) == 4 * min(depth, 3)
    assert len(set().union(*cells)) == sum(map(len, cells))


def test_layers_of_which_nothing_is_pruned_have_no_interactions_to_show() -> None:
    names = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.qkv"]
    strength = dict(zip(names, (2.0, 0.0, -1.0), strict=True))
    pairs = pd.DataFrame(
        {"layer": a, "other": b, "distortion": strength[a] * strength[b]} for a in names for b in names
    )
    axes = drawn("interactions", pairs, costs()).axes[0]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["qkv 0", "qkv 1"]
    assert axes.get_title("left").endswith("1 unpruned layers omitted")


def series(frame: pd.DataFrame) -> dict[str, str]:
    return {name: name for name in frame["experiment"].unique()}


def test_tradeoff_has_a_panel_for_each_stage_with_every_model_at_its_true_place_and_the_dense_one() -> None:
    table = tables.summary(evaluations())
    pruned, finetuned = drawn("tradeoff", table, series(evaluations())).axes
    for axes, stage in ((pruned, "pruned"), (finetuned, "finetuned")):
        expected = table[table["stage"].isin(["dense", stage])][["macs", "top1"]]
        marks = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in "*os^Dv"]
        assert sorted(marks) == sorted(expected.itertuples(index=False, name=None))


def test_a_sweep_is_one_line_and_has_its_intervals() -> None:
    table = tables.summary(evaluations().assign(images=50))
    sweep = {**series(evaluations()), "half": "sweep", "third": "sweep"}
    axes = drawn("tradeoff", table, sweep).axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    rows = table[(table["stage"] == "pruned") & table["experiment"].isin(["third", "half"])].sort_values("macs")
    assert line.get_xydata() == pytest.approx(rows[["macs", "top1"]].to_numpy())
    (bars,) = [bars for bars in axes.collections if len(bars.get_segments()) == 2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx(pair) for pair in rows[["top1_low", "top1_high"]].to_numpy().tolist()]


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    low, high = wilson(pd.Series([38.0, 100.0]), pd.Series([50, 50]))
    for share, ends in ((0.38, (low[0], high[0])), (1.0, (low[1], high[1]))):
        for end in ends:  # a share p that differs from what was counted by exactly 1.96 of its own deviations
            p = end / 100
            assert abs(share - p) == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 50), abs=1e-9)
    assert low[0] < 38 < high[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ours_70", "ours_50"], "ours"),
        (["keep75", "keep70"], "keep"),
        (["b16.half", "b16.third"], "b16"),
        (["half", "third"], "half to third"),
    ],
)
def test_experiments_that_differ_in_their_budget_alone_are_a_series(names: list[str], expected: str) -> None:
    found = series_of({name: {"pruning": "p"} for name in names} | {"other": {"pruning": "q"}})
    assert found == {**dict.fromkeys(names, expected), "other": "other"}


def test_two_series_never_share_a_name() -> None:
    decisions = {"a_70": 1, "b": 2, "a_50": 1, "a_40": 3, "a_30": 3, "a": 4}
    found = series_of(decisions)
    assert {name: found[name] for name in ("a_70", "a_50", "a_40", "a_30")} == {
        **dict.fromkeys(["a_70", "a_50"], "a_70 to a_50"),
        **dict.fromkeys(["a_40", "a_30"], "a_40 to a_30"),
    }


def test_neighbours_differ_in_colour_and_in_marker_and_thirty_series_have_looks_of_their_own() -> None:
    found = list(style.looks({str(i): str(i) for i in range(30)}).values())
    assert len(set(found)) == 30
    assert all(a.color != b.color and a.marker != b.marker for a, b in pairwise(found))


def test_every_curve_shows_some_decades() -> None:
    frame = curves(costs())
    frame.loc[frame["layer"] == "blocks.3.mlp.fc1", "distortion"] *= 1e-9
    frame.loc[3, "distortion"] = 1e-30
    bottom, _ = drawn("curves", frame, costs(), "arbitrary units").axes[0].get_ylim()
    assert bottom == pytest.approx(1e-3 * frame.groupby("layer")["distortion"].max().min())


def test_tradeoff_has_a_panel_for_quantised_models_where_there_are_some() -> None:
    names = {"dataset": "imagenet", "model": "deit_s", "experiment": "half"}
    quantised = [evaluation("quantised", 60.9, 0.5, **names), evaluation("finetuned_quantised", 80.2, 0.5, **names)]
    rows = pd.concat([evaluations(), pd.DataFrame(quantised)])
    figure = drawn("tradeoff", tables.summary(rows), series(rows))
    assert [axes.get_title("left").removeprefix("imagenet, ") for axes in figure.axes] == list(formats.STAGES.values())


def test_tradeoff_gives_every_dataset_its_row_and_every_experiment_its_look() -> None:
    many = [evaluations().assign(experiment=lambda rows, i=i: rows["experiment"] + str(i)) for i in range(3)]
    rows = pd.concat([*many, evaluations().assign(dataset="cifar10")])
    figure = drawn("tradeoff", tables.summary(rows), series(rows))
    titles = [f"{dataset}, {stage}" for dataset in ("imagenet", "cifar10") for stage in ("pruned alone", "fine-tuned")]
    assert [axes.get_title("left") for axes in figure.axes] == titles
    handles = figure.legends[0].legend_handles[1:]
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == len(handles) == 20


def test_history_shows_loss_accuracy_and_learning_rate() -> None:
    frame = history()
    minimised, loss, accuracy, rate = drawn("history", frame).axes
    assert [line.get_label() for axes in (minimised, loss) for line in axes.lines] == ["training loss", "validation"]
    assert accuracy.lines[0].get_ydata() == pytest.approx(frame["top1"].to_numpy())
    assert rate.lines[0].get_ydata() == pytest.approx(frame["learning_rate"].to_numpy())


def test_history_begins_with_the_model_before_training_where_that_was_evaluated() -> None:
    before = evaluations().query("stage == 'pruned'").head(1)
    _, loss, accuracy, _ = drawn("history", history(), before).axes
    for axes, value in ((loss, before["loss"].iloc[0]), (accuracy, before["top1"].iloc[0])):
        (point,) = [line for line in axes.lines if line.get_label() == "before training"]
        assert point.get_xydata().tolist() == [[0, value]]


def test_figures_are_written_whole_alike_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("first", "second"):
        drawing.save_figure(drawn("history", history(2)), tmp_path / f"{name}.png", tmp_path / f"{name}.svg")
    assert dict(matplotlib.rcParams) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first.png", "first.svg", "second.png", "second.svg"]
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert image.size == (9 * drawing.DOTS_PER_INCH, 2.4 * drawing.DOTS_PER_INCH)
