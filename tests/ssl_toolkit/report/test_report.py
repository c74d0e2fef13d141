from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_toolkit.report import Code, Figure, Section, Table, Text, write_page, write_report
from ssl_toolkit.report.drawing import INK, RULE, to_svg
from ssl_toolkit.report.figures import MAX_POINTS, bars, curves, image_grid, neighbours
from ssl_toolkit.report.tiles import tile, to_png, to_rgb

HOSTILE = "<script src=x>&\"'</p>"  # short enough to stand whole in a figure
VOID = {"meta", "img", "br", "link", "use", "path", "image"}


class Outline(HTMLParser):
    """Collects the tags, their attributes and the text; complains if a tag is not closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def all_pieces(name: str) -> list[Section]:
    """Every kind of piece, with the same name in every place that takes text."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    drawings = [
        curves({name: ([0, 1], [0.5, 1.0]), "b": ([0, 1], [0.5, 1.0])}, name, {name: 0.7}, xlabel=name),
        bars([name], [0.5], [0.1], [[0.4, 0.6]], name, {name: 0.1}),
        image_grid(images, [name] * 3, [name] * 2),
        neighbours(images[:, 0], images, np.eye(2, 3), [name] * 2),
    ]
    pieces = [
        Text(name),
        Code(name),
        Code(name, summary=name),
        Table([name, "number"], [[name, 1]], name),
        Figure([to_png(images[0, 0]), *drawings], name, name),
    ]
    return [Section(name, pieces)]


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    outline = Outline(write_page(tmp_path / "new" / "page.html", "Title", all_pieces("plain"), "subtitle"))
    assert outline.links, "the pictures"
    # within the page, or from it
    assert [link[:40] for link in outline.links if not link.startswith(("data:image/png;base64,", "#"))] == []
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "script" not in outline.tags
    assert "@import" not in text
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []
    for rule in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', "default-src 'none'"):
        assert rule in text
    assert INK not in text
    assert RULE not in text


def test_hostile_names_are_shown_and_never_interpreted(tmp_path: Path) -> None:
    plain = Outline(write_page(tmp_path / "plain.html", "x", all_pieces("x"), "x"))
    hostile = Outline(write_page(tmp_path / "hostile.html", HOSTILE, all_pieces(HOSTILE), HOSTILE))
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    # the page's texts, and in the figures: two legends, titles and labels of both axes, a reference, five rows
    assert sum(HOSTILE in text for text in hostile.texts) >= 20


@pytest.mark.parametrize("name", ["$x_{", r"$\frac$", "鳥", "a\nb", "", 500 * "long "])
def test_any_name_can_stand_in_a_figure(tmp_path: Path, name: str) -> None:
    write_page(tmp_path / "page.html", name, all_pieces(name))


def test_columns_of_numbers_are_known() -> None:
    rows = [["resnet18", "31.2 ± 1.4", 5, "–", "1,024", "-0.5 to 3"], ["3x3", "8.0 (7 to 9)", 1.5, "12 %", "", "+2"]]
    assert Table(list("abcdef"), rows).numeric == [False, True, True, True, True, True]
    assert Table(["a", "b"], []).numeric == [False, False]


def test_table_lays_out_its_cells(tmp_path: Path) -> None:
    table = Table(["name", "top-1"], [["random", 31.2], ["SimCLR", 72.4]], "A caption.")
    file = write_page(tmp_path / "page.html", "t", [Section("s", [table])])
    cells = [text for text in Outline(file).texts if text.strip()]
    assert cells[-7:] == ["A caption.", "name", "top-1", "random", "31.2", "SimCLR", "72.4"]


def test_png_survives(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    outline = Outline(write_page(tmp_path / "p.html", "t", [Section("s", [Figure([to_png(pixels)])])]))
    data = base64.b64decode(outline.links[0].partition(",")[2])
    assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()


# ---- figures


def test_curve_passes_through_its_points() -> None:
    figure = curves({"a": ([0, 10, 20], [0.25, math.nan, 0.75])}, "t", percent=True)
    [line] = figure.axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[0, 25], [20, 75]]


def test_long_curve_is_averaged_without_a_shift() -> None:
    steps = np.arange(10_001)
    faint, smooth = curves({"a": (steps, 3.0 * steps)}, "t").axes[0].lines
    for line in (faint, smooth):
        x, y = np.asarray(line.get_xydata()).T
        assert len(x) <= MAX_POINTS
    # away from the ends the average of a straight line is the line
    x, y = np.asarray(smooth.get_xydata()).T
    middle = slice(len(x) // 4, -len(x) // 4)
    assert y[middle] == pytest.approx(3.0 * x[middle], rel=0.01)
    assert np.asarray(faint.get_ydata()).mean() == pytest.approx(15_000, rel=0.01)


def test_empty_curve_is_drawn_as_nothing() -> None:
    assert "<svg" in to_svg(curves({"a": ([], [])}, "t"))


def test_bars_have_the_lengths_of_the_values() -> None:
    axes = bars(["a", "b"], [0.2, 0.9], [0.01, 0.05], [[0.19, 0.21], [0.9]]).axes[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([20, 90])  # pyright: ignore[reportAttributeAccessIssue]
    assert axes.get_xlim()[1] > 95
    assert {"20.0", "90.0"} <= {text.get_text() for text in axes.texts}


def test_svg_is_as_wide_as_asked_and_takes_the_colours_of_the_page() -> None:
    svg = to_svg(bars(["a"], [0.5]))
    assert re.match(r'<svg viewBox="0 0 [\d. ]+" width="710">', svg)
    assert "currentColor" in svg
    assert "var(--rule)" in svg


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_tiles_lie_where_they_should(channels: int, shown: list[int]) -> None:
    images = np.random.default_rng(0).random((2, 3, 5, 7, channels))
    picture = tile(images, min_side=10, gap=1)
    assert picture.shape == (2 * 10 + 1, 3 * 14 + 2, 4)
    for row in range(2):
        for column in range(3):
            cell = picture[row * 11 : row * 11 + 10 : 2, column * 15 : column * 15 + 14 : 2]
            assert (cell[..., :3] == np.round(images[row, column][..., shown] * 255)).all()
            assert (cell[..., 3] == 255).all()
    assert (picture[10, :, 3] == 0).all()
    assert (picture[:, 14, 3] == 0).all()


def test_to_rgb_cuts_off_and_keeps_bytes() -> None:
    assert to_rgb(np.array([[[-1.0, 0.5, 2.0]]])).tolist() == [[[0, 128, 255]]]
    assert to_rgb(np.array([[[math.nan]]])).tolist() == [[[0, 0, 0]]]
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (to_rgb(pixels) == pixels).all()


def test_neighbours_differ_by_more_than_colour() -> None:
    images = np.zeros((1, 2, 64, 64, 3), dtype=np.uint8)
    [image] = neighbours(images[:, 0], images, [[True, False]]).axes[0].images
    canvas = np.asarray(image.get_array())
    height, width, _ = canvas.shape
    assert (height, width) == (72, 72 + 24 + 72 + 4 + 72)
    same, other = canvas[0, 96 : 96 + 72], canvas[0, -72:]
    assert (same[:, 3] == 255).all()
    assert 0.3 < (other[:, 3] == 255).mean() < 0.7, "a broken frame"
    assert (canvas[0, :96, 3] == 0).all(), "the query has none"


# ---- the page of a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "birds & co"
    folder.mkdir()
    config = {"model": {"class_path": "pretext.simclr.SimCLR", "init_args": {"backbone": {"name": "resnet18"}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        "step,epoch,train/loss,val/knn_top1,train/images_per_second",
        "0,0,5.0,,100",
        "1,0,4.0,0.25,",
        "2,1,3.5,0.5,300",
    ]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    start = {
        "started": "2026-01-02T03:04:05+00:00", "command": ["ssl-toolkit", "pretrain", "--out", "my birds"],
        "python": "3.11", "platform": "Linux", "processor": "A processor", "cpus": 2, "threads": 2, "gpus": [],
        "versions": {"torch": "2.15"}, "not_read": "not read: 125 .heic",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps({"starts": [start, start]}))
    (folder / "bad_files.txt").write_text(f"{HOSTILE}.jpg\ttruncated\n", encoding="utf-8")
    (folder / "views.png").write_bytes(to_png(np.zeros((4, 4, 3), dtype=np.uint8)))
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"representation": "pooled", "num_features": 512, "knn": interval, "knn_k": 5, "linear": interval}
    evaluation = {
        "rows": [row | {"weights": "given"}, row | {"weights": "random"}],
        "num_images": {"train": 1000, "test": 200}, "num_classes": 10, "verdict": "pretrained features beat all",
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_the_losses_of_several_tasks_are_among_the_results(run: Path) -> None:
    (run / "metrics.csv").write_text(
        "step,epoch,train/loss,train/rotation_loss,val/rotation_loss\n0,0,5.0,1.25,1.375\n"
    )
    page = write_report(run).read_text(encoding="utf-8")
    rows = [["train rotation loss", "1.25"], ["val rotation loss", "1.375"]]
    for title, value in rows:
        assert re.search(rf"{title}</td>\s*<td[^>]*>{re.escape(value)}<", page)


def test_report_of_a_run(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report.html"
    outline = Outline(page)
    texts = " ".join(outline.texts)
    for expected in (
        "birds & co", "SimCLR · resnet18 · 2026-01-02", "kNN top-1 (%)", "50.0", "times resumed", "A processor",
        "class_path: pretext.simclr.SimCLR", "ssl-toolkit pretrain --out 'my birds'", f"{HOSTILE}.jpg", "truncated",
        "Files not read: 125 .heic.",
        "Pretrained features beat all.", "50.0 (40.0 to 60.0)", f"ssl-toolkit pretrain --resume '{run}'",
    ):  # fmt: skip
        assert expected in texts, expected
    assert "script" not in outline.tags
    assert outline.tags.count("img") == 1
    assert outline.tags.count("svg") == 3


def test_the_shortcut_meter_is_on_the_page_where_it_was_asked_for(run: Path) -> None:
    assert "tells the place" not in " ".join(Outline(write_report(run)).texts)
    evaluation = json.loads((run / "evaluation.json").read_text())
    row = {
        "what": "position", "weights": "given", "representation": "layer2",
        "r2": {"value": 0.25, "low": 0.2, "high": 0.3},
        "r2_down": 0.4, "r2_right": -0.1, "rmse": 0.2512, "chance_rmse": 0.2986,
    }  # fmt: skip
    shortcuts = {"rows": [row], "words": ["It tells the place."], "num_patches": {"train": 1200}, "image_size": 126,
                 "patch_size": 32, "reach": 2.0}  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "shortcuts": shortcuts}))
    texts = " ".join(Outline(write_report(run)).texts)
    for expected in ("It tells the place.", "layer2", "0.25 (0.20 to 0.30)", "0.40", "-0.10", "0.251", "0.299",
                     "patches of 32 px of images of 126 px", "1,200 train"):  # fmt: skip
        assert expected in texts, expected


def test_what_an_evaluation_says_is_on_the_page(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    words = [f"worst classes: {HOSTILE} 10.0 %", "retrieval: each of 200 test images"]
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "words": words}))
    outline = Outline(write_report(run))
    assert all(line in " ".join(outline.texts) for line in words)
    assert "script" not in outline.tags, "the name of a class is a folder's"


def test_a_task_s_own_accuracy_is_shown_in_percent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}

    def noted(series, title, **options):
        drawn[title] = options["percent"]
        return curves(series, title, **options)

    monkeypatch.setattr("ssl_toolkit.report.figures.curves", noted)
    (run / "metrics.csv").write_text("step,train/rotation_top1,train/coding_rate\n0,0.25,0.1\n1,0.5,0.2\n")
    write_report(run)
    assert drawn == {"rotation top-1 (%)": True, "coding rate": False}


def test_report_of_a_run_that_has_just_begun(run: Path) -> None:
    for file in run.iterdir():
        if file.name != "config.yaml":
            file.unlink()
    (run / "config.yaml").write_text("")
    outline = Outline(write_report(run))
    assert "Nothing has been logged yet." in outline.texts
    assert outline.tags.count("h2") == 3


def test_report_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml; give the folder of a run"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        write_report(tmp_path / "missing")


def test_steps_are_counted_without_the_test_after_them(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss,test/loss\n9,2.0,,\n9,,2.1,\n10,,,2.2\n")
    texts = [text for text in Outline(write_report(tmp_path)).texts if text.strip()]
    assert texts[texts.index("steps") + 1] == "10"
