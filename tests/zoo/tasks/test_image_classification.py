"""Image classification: pixels, labels, figures; images as transformers and timm prepare them."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from dataset_cards import SMALL, open_task, write_idx
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import run_all
from zoopress.tasks import File
from zoopress_zoo.image_settings import Augmentation, ImagePreprocessing, complete
from zoopress_zoo.images import (
    as_tensor,
    augment,
    center_crop,
    decode,
    normalize,
    prepare,
    prepared_shape,
)
from zoopress_zoo.labels import find_label_space

TASK = "image-classification"
RANDOM = np.random.default_rng(0)


def encoded(pixels: np.ndarray[Any, Any], form: str = "PNG", **options: Any) -> File:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return File(stream.getvalue(), f"image.{form.lower()}")


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    images = RANDOM.integers(0, 256, (40, 6, 6), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(40) % 3)
    return tmp_path


def linear(classes: int, pixels: int = 36) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


class TestTask:
    def test_pixels_and_labels_are_those_of_the_files(self, idx: Path) -> None:
        task = open_task(idx, TASK, dataset="idx:.", **SMALL)
        rows = task.rows("test")
        batch = task.samples("test").batch([2, 0])
        assert tuple(batch.inputs.shape) == (2, 1, 6, 6)
        for i, row in enumerate((2, 0)):
            place = rows.places[row].row
            assert batch.targets[i] == place % 3
            expected = rows.values("image", [row])[0][..., 0] / 255
            assert np.allclose(batch.inputs[i, 0], expected)

    def test_a_sample_is_the_same_in_every_batch(self, idx: Path) -> None:
        samples = open_task(idx, TASK, dataset="idx:.", **SMALL).samples("training")
        together = samples.batch(range(len(samples)))
        for row in range(len(samples)):
            alone = samples.batch([row])
            assert torch.equal(alone.inputs[0], together.inputs[row])
            assert alone.targets[0] == together.targets[row]

    def test_figures_are_those_computed_by_hand(self, idx: Path) -> None:
        task = open_task(idx, TASK, dataset="idx:.", **SMALL)
        model = linear(3)
        statistics = run_all(task, model).statistics
        batch = task.samples("test").batch(range(4))
        scores = model(batch.inputs).double().detach()
        expected = -scores.log_softmax(1)[range(4), batch.targets]
        assert torch.allclose(statistics["loss"], expected)
        assert torch.equal(statistics["predicted"], scores.argmax(1))
        found = task.metrics(statistics)
        assert found["accuracy"] == float((scores.argmax(1) == batch.targets).double().mean())
        assert math.isclose(found["log_loss"], float(expected.mean()))
        assert task.metric in found
        loss = task.loss(scores.float(), batch.targets)
        assert math.isclose(float(loss), found["log_loss"], rel_tol=1e-6)

    def test_top_5_of_many_classes_counts_ties_against_the_model(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "images-idx3-ubyte", RANDOM.integers(0, 256, (40, 2, 2)))
        write_idx(tmp_path / "labels-idx1-ubyte", np.arange(40) % 12)
        task = open_task(tmp_path, TASK, dataset="idx:.", **SMALL)
        target = torch.tensor([0, 1, 2, 3])
        scores = torch.zeros(4, 12)
        scores[0, 0] = 1  # the first place
        scores[1, :5] = torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0])  # the fifth
        scores[2, :6] = torch.tensor([5.0, 4.0, 0.5, 3.0, 2.0, 1.0])  # the sixth
        found = task.metrics(task.statistics(scores, target))  # the last one ties with all
        assert found["top_5_accuracy"] == 0.5

    def test_a_model_of_other_classes_is_told_at_the_first_batch(self, idx: Path) -> None:
        task = open_task(idx, TASK, dataset="idx:.", **SMALL)
        with pytest.raises(CardError, match=r"expects class scores \[4, 3\].*got \[4, 5\].*5 cl"):
            run_all(task, linear(5))
        with pytest.raises(CardError, match="Use a model that ends in a classifier"):
            run_all(task, nn.Identity())

    def test_groups_and_pictures_are_for_each_row(self, tmp_path: Path) -> None:
        from PIL import Image

        arrays = {"image": RANDOM.integers(0, 256, (20, 5, 5), dtype=np.uint8)}
        np.savez(tmp_path / "d.npz", label=np.arange(20) % 2, hand=np.arange(20) // 10, **arrays)
        task = open_task(tmp_path, TASK, dataset="file:d.npz", groups=("hand",), **SMALL)
        rows = task.rows("test").places
        assert task.groups("test") == {"hand": [str(place.row // 10) for place in rows]}
        shown = task.show("test", 1)
        assert shown.startswith("data:image/png;base64,")
        import base64

        picture = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
        assert np.array_equal(np.asarray(picture), arrays["image"][rows[1].row])

    def test_transformers_models_run(self, idx: Path) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = ViTConfig(
            image_size=6, patch_size=3, num_channels=1, intermediate_size=8, num_labels=3, **sizes
        )
        task = open_task(idx, TASK, dataset="idx:.", **SMALL)
        output = run_all(task, ViTForImageClassification(config).eval())
        assert output.statistics["predicted"].shape == (4,)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"random": {"0": {"shape": [1, 6, 6]}}}, "needs 'data.dataset'"),
            ({"dataset": "idx:.", "columns": {"image": "img"}}, "no column 'img'"),
            ({"dataset": "idx:.", "columns": {"picture": "image"}}, "no role 'picture'"),
            ({"dataset": "idx:.", "groups": ["labels"]}, "Did you mean 'label'"),
            (
                {"dataset": "idx:.", "preprocessing": {"sise": 3}},
                "no key 'sise'. Did you mean 'siz",
            ),
            ({"dataset": "idx:.", "preprocessing": {"std": [0.0], "mean": [1.0]}}, "above 0"),
            (
                {"dataset": "idx:.", "preprocessing": {"augment": {"spin": 1}}},
                "Valid: crop, elastic, flip, rotate, scale, shear, shift",
            ),
            ({"dataset": "idx:.", "label_names": ["a", "b"]}, "the label 2 (row"),
            ({"dataset": "idx:.", "preprocessing": {"mean": [0, 0], "std": [1, 1]}}, "2 channels"),
        ],
    )
    def test_mistakes_are_told_before_the_model_runs(
        self, idx: Path, data: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(CardError) as raised:
            open_task(idx, TASK, **data, **SMALL).samples("test").batch([0])
        assert said in str(raised.value)

    def test_images_of_mixed_sizes_need_a_size(self, tmp_path: Path) -> None:
        for i in range(10):
            path = tmp_path / f"images/{'ab'[i % 2]}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(np.full((4 + i % 2, 4, 3), i, np.uint8)).content)
        with pytest.raises(CardError, match=r"\[3, 5, 4\].*\[3, 4, 4\].*preprocessing: {size:"):
            open_task(tmp_path, TASK, dataset="folder:images", **SMALL).samples("test")
        sized = {"dataset": "folder:images", "preprocessing": {"size": 3}}
        batch = open_task(tmp_path, TASK, **sized, **SMALL).samples("test").batch(range(4))
        assert tuple(batch.inputs.shape) == (4, 3, 3, 3)

    def test_a_file_that_is_no_image_is_named(self, tmp_path: Path) -> None:
        for i in range(8):
            (tmp_path / f"images/{i % 2}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"images/{i % 2}/{i}.png").write_text(f"not an image {i}")
        with pytest.raises(CardError, match=r"\d\.png is no image that Pillow can read"):
            open_task(tmp_path, TASK, dataset="folder:images", **SMALL).samples("test")

    def test_training_images_alone_are_augmented_and_by_the_generator_alone(
        self, idx: Path
    ) -> None:
        settings = {"augment": {"shift": 2, "flip": True}}
        task = open_task(idx, TASK, dataset="idx:.", preprocessing=settings, **SMALL)
        samples = task.samples("training")
        plain = samples.batch(range(8)).inputs

        def drawn(seed: int) -> Tensor:
            found: Tensor = samples.batch(range(8), torch.Generator().manual_seed(seed)).inputs
            return found

        assert torch.equal(samples.batch(range(8)).inputs, plain)
        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))
        assert not torch.equal(drawn(1), plain)


class TestLabelSpace:
    def test_integers_count_the_names(self) -> None:
        space = find_label_space({0: "row 0", 1: "row 1"}, "card", dataset=("cat", "dog", "cow"))
        assert space.names == ("cat", "dog", "cow")
        assert space.encode([1, np.int64(0), 1.0]) == [1, 0, 1]

    def test_the_models_order_goes_before_the_datasets(self) -> None:
        space = find_label_space(
            {0: "r", 1: "r"}, "card", dataset=("neg", "pos"), model=("POS", "NEG", "NEUTRAL")
        )
        assert space.encode([0, 1]) == [1, 0]
        assert space.names == ("POS", "NEG", "NEUTRAL")

    def test_texts_are_sorted_unless_somebody_names_them(self) -> None:
        assert find_label_space({"b": "r", "a": "r"}, "card").names == ("a", "b")
        assert find_label_space({"b": "r", "a": "r"}, "card", given=("b", "a")).encode("ab") == [
            *(1, 0),
        ]

    def test_unnamed_integers_count_from_zero(self) -> None:
        assert find_label_space({4: "r", 0: "r"}, "card").names == ("0", "1", "2", "3", "4")

    def test_integers_may_be_names_themselves(self) -> None:
        space = find_label_space({1: "r", 2: "r", 3: "r"}, "card", given=("1", "2", "3"))
        assert space.encode([1, 2, 3]) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("found", "given", "said"),
        [
            ({"cot": "row 7 of part 'train'"}, ("cat", "dog"), "'cot' (row 7 of part 'train')"),
            ({"cot": "row 7"}, ("cat", "dog"), "Did you mean 'cat'"),
            ({-1: "row 3"}, ("cat", "dog"), "the label -1 (row 3)"),
            ({2: "row 3"}, ("cat", "dog"), "from 0 to 1 (cat, dog)"),
            ({-1: "row 3", 0: "row 0"}, (), "the label -1 (row 3)"),
            ({10**9: "row 3", 0: "row 0"}, (), "reach up to 1000000000 (row 3)"),
        ],
    )
    def test_labels_outside_are_told_with_their_place(
        self, found: dict[Any, str], given: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(CardError) as raised:
            find_label_space(found, "card", given=given)
        assert said in str(raised.value)

    @given(st.lists(st.text(max_size=3), min_size=1, unique=True))
    def test_every_label_has_the_class_of_its_name(self, labels: list[str]) -> None:
        space = find_label_space(dict.fromkeys(labels, "row"), "card")
        assert [space.names[i] for i in space.encode(labels)] == labels


class TestImages:
    @pytest.mark.parametrize(
        ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)]
    )
    def test_every_mode_of_8_bits_is_decoded(self, mode: str, channels: int) -> None:
        from PIL import Image

        stream = io.BytesIO()
        form = "TIFF" if mode == "CMYK" else "PNG"
        Image.new("RGB", (3, 2), (200, 200, 200)).convert(mode).save(stream, form)
        value = File(stream.getvalue())
        assert decode(value).shape == (2, 3, channels)
        assert decode(value, 3).shape == (2, 3, 3)
        assert prepared_shape(value, ImagePreprocessing()) == (channels, 2, 3)

    def test_pictures_with_more_bits_are_refused(self) -> None:
        with pytest.raises(ValueError, match="more than 8 bits"):
            decode(encoded(np.full((2, 2), 40_000, np.uint16)))

    def test_a_picture_that_lies_on_its_side_is_put_right(self) -> None:
        from PIL import Image

        pixels = RANDOM.integers(0, 256, (2, 5, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        value = encoded(pixels, exif=exif)
        assert prepared_shape(value, ImagePreprocessing()) == (3, 5, 2)
        assert np.array_equal(decode(value), np.rot90(pixels, -1))

    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
    def test_a_crop_has_its_size_whatever_the_image(self, h: int, w: int, y: int, x: int) -> None:
        cropped = center_crop(np.ones((h, w, 1), np.uint8), (y, x))
        assert cropped.shape == (y, x, 1)
        assert cropped.sum() == min(h, y) * min(w, x)

    @given(
        st.integers(2, 20),
        st.integers(2, 20),
        st.none() | st.integers(1, 12),
        st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    def test_the_shape_is_told_without_decoding(
        self, h: int, w: int, edge: int | None, crop: tuple[int, int] | None
    ) -> None:
        settings = ImagePreprocessing(shortest_edge=edge, crop=crop)
        value = np.zeros((h, w, 3), np.uint8)
        height, width, channels = prepare(value, settings).shape
        assert prepared_shape(value, settings) == (channels, height, width)

    def test_normalizing_is_rescale_then_mean_and_deviation(self) -> None:
        settings = ImagePreprocessing(rescale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
        images = torch.full((1, 3, 1, 1), 10.0)
        assert normalize(images, settings).flatten().tolist() == [4.0, 1.5, 0.5]


def test_without_pillow_arrays_still_run_and_files_say_what_to_install(
    idx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = encoded(np.zeros((3, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    task = open_task(idx, TASK, dataset="idx:.", **SMALL)
    assert len(task.examples("test")[0].inputs) == 4
    assert task.show("test", 0) is None
    with pytest.raises(ValueError, match=r"pip install 'zoopress\[data\]'"):
        decode(value)


class TestAugmentation:
    IMAGES = torch.arange(2 * 1 * 5 * 4, dtype=torch.float32).reshape(2, 1, 5, 4) + 1

    def drawn(self, count: int = 1, **settings: Any) -> Tensor:
        images = self.IMAGES.repeat(count, 1, 1, 1)
        return augment(images, Augmentation(**settings), torch.Generator().manual_seed(3))

    def test_a_shift_moves_whole_pixels_and_brings_in_black(self) -> None:
        moved = self.drawn(100, shift=2)[::2, 0]
        original = self.IMAGES[0, 0]
        padded = torch.nn.functional.pad(original, (2, 2, 2, 2))
        possible = torch.stack([padded[y : y + 5, x : x + 4] for y in range(5) for x in range(5)])
        differences = (moved[:, None] - possible[None]).abs().amax((2, 3))
        assert float(differences.amin(1).max()) < 1e-4
        assert len(differences.argmin(1).unique()) > 15  # of 25

    def test_about_half_are_flipped(self) -> None:
        flipped = self.drawn(100, flip=True)[::2, 0]
        same = (flipped - self.IMAGES[0, 0]).abs().amax((1, 2)) < 1e-4
        mirrored = (flipped - self.IMAGES[0, 0].flip(1)).abs().amax((1, 2)) < 1e-4
        assert bool((same ^ mirrored).all())
        assert 30 < int(mirrored.sum()) < 70

    def test_a_cut_out_stays_inside_of_the_image(self) -> None:
        ones = torch.ones(50, 1, 20, 20)
        cut = augment(ones, Augmentation(crop=0.3), torch.Generator().manual_seed(0))
        assert torch.allclose(cut[:, :, 1:-1, 1:-1], torch.ones(50, 1, 18, 18), atol=1e-4)

    def test_a_quarter_turn_is_exact_on_a_square(self) -> None:
        image = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        turned = augment(image, Augmentation(rotate=180), torch.Generator().manual_seed(1))
        inside = image[..., 1:4, 1:4].mean()
        assert not torch.allclose(turned, image, atol=1e-2)
        assert float(turned.max()) <= float(image.max()) + 1e-5
        assert float((turned[..., 1:4, 1:4].mean() - inside).abs()) < 0.2

    def test_stretching_keeps_the_middle_and_goes_no_further_than_asked(self) -> None:
        line = torch.zeros(200, 1, 41, 41)
        line[:, :, :, 20] = 1.0
        line[:, :, :, 30] = 0.5
        drawn = augment(line, Augmentation(scale=0.25), torch.Generator().manual_seed(0))
        assert bool((drawn[:, 0, 20].argmax(1) == 20).all())
        beside = 21 + drawn[:, 0, 20, 25:].argmax(1) + 4
        assert int(beside.min()) >= 20 + 10 / 1.25 - 1
        assert int(beside.max()) <= 20 + 10 * 1.25 + 1
        assert len(beside.unique()) > 3

    def test_shear_slants_columns_and_leaves_the_middle_row(self) -> None:
        line = torch.zeros(200, 1, 41, 41)
        line[:, :, :, 20] = 1.0
        drawn = augment(line, Augmentation(shear=30), torch.Generator().manual_seed(0))
        top, middle, bottom = (drawn[:, 0, row].argmax(1) - 20 for row in (10, 20, 30))
        assert bool((middle == 0).all())
        assert bool(((top + bottom).abs() <= 1).all())  # as far to the left as to the right
        assert 4 <= int(top.abs().max()) <= 6  # 10 · tan 30° = 5.8

    def test_elastic_moves_pixels_by_about_what_was_asked_each_place_otherwise(self) -> None:
        ramp = torch.arange(40.0).expand(100, 1, 30, 40)
        drawn = augment(ramp, Augmentation(elastic=0.5), torch.Generator().manual_seed(0))
        moved = (drawn - ramp)[:, 0, 5:-5, 5:-5]  # a ramp's value tells where it came from
        assert 0.3 < float(moved.std()) < 0.6
        assert float(moved.mean().abs()) < 0.05
        assert float(moved.std((1, 2)).mean()) > 0.2


class TestModelFiles:
    """What preprocessor_config.json and timm's config.json say is what their libraries do."""

    IMAGES = (
        RANDOM.integers(0, 256, (37, 61, 3), dtype=np.uint8),
        RANDOM.integers(0, 256, (50, 29, 3), dtype=np.uint8),
    )

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("ViTImageProcessorPil", {}),
            ("ViTImageProcessorPil", {"size": {"height": 20, "width": 30}, "resample": 3}),
            ("ViTImageProcessorPil", {"do_rescale": False, "do_normalize": False}),
            ("CLIPImageProcessorPil", {}),
            ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": 45}),
            ("DeiTImageProcessorPil", {}),
            ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}}),
            ("ConvNextImageProcessorPil", {}),
            ("MobileNetV2ImageProcessorPil", {}),
            ("MobileViTImageProcessorPil", {}),
            ("PoolFormerImageProcessorPil", {}),
            ("SiglipImageProcessorPil", {}),
        ],
    )
    def test_transformers(self, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
        import transformers

        processor_type = getattr(transformers, name, None)
        if processor_type is None:
            pytest.skip(f"this transformers has no {name}")
        processor = processor_type(**options)
        processor.save_pretrained(tmp_path)
        settings = complete(ImagePreprocessing(), tmp_path, "card")
        for pixels in self.IMAGES:
            expected = processor(images=pixels, return_tensors="pt")["pixel_values"]
            found = normalize(as_tensor([prepare(pixels, settings)]), settings)
            assert found.shape == expected.shape
            assert float((found - expected).abs().max()) < 1e-4

    def test_timm(self, tmp_path: Path) -> None:
        cfg = {"input_size": [3, 24, 24], "crop_pct": 0.8, "interpolation": "bicubic"}
        cfg |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
        settings = complete(ImagePreprocessing(), tmp_path, "card")
        assert settings.shortest_edge == 30
        assert settings.output_size == (24, 24)
        assert settings.interpolation == "bicubic"
        assert settings.mean == (0.4, 0.5, 0.6)

    def test_the_card_goes_first_and_says_all_of_the_sizes(self, tmp_path: Path) -> None:
        settings = {
            "do_resize": True,
            "size": {"shortest_edge": 256},
            "do_center_crop": True,
            "do_normalize": True,
        }
        settings |= {"crop_size": {"height": 224, "width": 224}, "image_mean": [0.5, 0.5, 0.5]}
        settings |= {"image_std": [0.5, 0.5, 0.5], "resample": 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        found = complete(ImagePreprocessing(size=32), tmp_path, "card")
        assert (found.size, found.shortest_edge, found.crop) == (32, None, None)
        assert found.mean == (0.5, 0.5, 0.5)
        assert found.interpolation == "bicubic"

    def test_steps_that_are_not_known_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text('{"include_top": true}')
        with pytest.raises(CardError, match="include_top"):
            complete(ImagePreprocessing(), tmp_path, "card")
        assert complete(ImagePreprocessing(size=8), tmp_path, "card").size == 8
        (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": "x", "width": 1}}')
        with pytest.raises(CardError, match="cannot be read"):
            complete(ImagePreprocessing(), tmp_path, "card")
