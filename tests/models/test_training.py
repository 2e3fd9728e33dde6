import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_pipeline.models.augmentation import AugmentationConfig, augment, shrink
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.training.config import TrainingConfig
from fer_pipeline.models.training.feed import Resident
from fer_pipeline.models.training.optimizer import make_optimizer, make_schedule
from fer_pipeline.models.training.teachers import Teachers
from fer_pipeline.models.training.trainer import DivergedError, Epoch, Trainer, predict
from fer_pipeline.models.weights import load_network

PLAIN = AugmentationConfig(flip=0, shift=0, rotation_deg=0, scale=0, contrast=0, erase=0)
CPU = torch.device("cpu")


def stripes(count: int, seed: int = 0) -> LabelledImages:
    """Return noisy images of two classes that differ in the direction of their stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    wave = 60 * torch.sign(torch.sin(torch.arange(48) * 0.8))
    pictures = torch.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :]).expand(count, 48, 48)
    noisy = 128 + pictures + 30 * torch.randn(count, 48, 48, generator=generator)
    return LabelledImages(noisy.clamp(0, 255).to(torch.uint8)[:, None], labels, torch.zeros(count, 0))


def trainer(train: LabelledImages, augmentation: AugmentationConfig = PLAIN, **config: Any) -> Trainer:
    torch.manual_seed(0)
    settings = TrainingConfig.model_validate({"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "precision": "fp32"} | config)
    feed = Resident(train, settings.batch_size, settings.class_balance == "sampling")
    outputs = 2 + (train.votes.shape[1] if settings.votes == "auxiliary" else 0)
    return Trainer(build(NetworkConfig(width=4), outputs), train.labels.bincount().tolist(), settings, augmentation, feed, CPU)


def test_the_loop_learns_what_can_be_learnt() -> None:
    torch.set_num_threads(1)
    history: list[Epoch] = []
    learner = trainer(stripes(256), AugmentationConfig(rotation_deg=5), mixup=0.1, ema_decay=0.9)
    learner.fit([stripes(64, seed=1)], history.append)
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    best = max(epoch.validation_accuracy for epoch in history)
    assert best > 0.95
    validation = stripes(64, seed=1)
    predicted = predict(learner.network, validation.images).argmax(1)
    assert float((predicted == validation.labels).float().mean()) == best  # the selected epoch's weights


def test_a_restarted_training_ends_where_an_undisturbed_one_does() -> None:
    torch.set_num_threads(1)

    class KilledError(Exception):
        pass

    def kill_after_two(epoch: Epoch) -> None:
        torch.save(killed.state(), saved)
        saved.seek(0)
        if epoch.epoch == 2:
            raise KilledError

    augmentation, options = AugmentationConfig(), {"mixup": 0.2, "ema_decay": 0.9}
    undisturbed = trainer(stripes(96), augmentation, **options)
    undisturbed.fit([stripes(32, 1)], lambda _: None)
    saved = io.BytesIO()
    killed = trainer(stripes(96), augmentation, **options)
    with pytest.raises(KilledError):
        killed.fit([stripes(32, 1)], kill_after_two)
    resumed = trainer(stripes(96), augmentation, **options)
    resumed.load(torch.load(saved, weights_only=True))
    resumed.fit([stripes(32, 1)], lambda _: None)
    assert [e.validation_loss for e in resumed.history] == [e.validation_loss for e in undisturbed.history]
    for name, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_batches_are_a_permutation_that_the_seed_decides() -> None:
    def drawn(seed: int) -> list[int]:
        numbers = torch.arange(100)
        feed = Resident(LabelledImages(numbers, numbers, numbers), 20)
        return torch.cat([batch.labels for batch in feed.batches(seed)]).tolist()

    assert sorted(drawn(1)) == list(range(100))
    assert drawn(1) == drawn(1) != drawn(2)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    broken = trainer(stripes(64))

    def spoil(epoch: Epoch) -> None:
        with torch.no_grad():
            next(broken.network.parameters()).fill_(float("nan"))

    with pytest.raises(DivergedError, match=r"not finite at step 5 \(epoch 2\)"):
        broken.fit([stripes(32, 1)], spoil)


def last(learner: Trainer) -> Epoch:
    torch.set_num_threads(1)
    learner.fit([stripes(64, seed=1)], lambda _: None)
    return learner.history[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "learning_rate": 0.003, "schedule": "constant"},
        {"optimizer": "adamw", "learning_rate": 0.003, "schedule": "cosine"},
        {"accumulate": 3},
        {"class_balance": "loss"},
        {"class_balance": "sampling"},
        {"precision": "bf16"},
    ],
)
def test_every_way_of_optimising_learns_what_can_be_learnt(options: dict[str, Any]) -> None:
    assert last(trainer(stripes(256), **options)).validation_accuracy > 0.9


@pytest.mark.parametrize("steps", range(1, 12))
def test_however_short_a_training_is_its_rate_rises_to_the_highest_and_falls(steps: int) -> None:
    for warmup in (0.0, 0.1, 0.2, 0.5, 1.0):
        config = TrainingConfig(learning_rate=0.1, warmup=warmup)
        optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
        schedule, rates = make_schedule(optimizer, config, steps), []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert 0 < max(rates) <= 0.1 and min(rates) >= 0, (warmup, rates)


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    """The network has no batch statistics, because these differ between the parts and the whole."""
    torch.set_num_threads(1)
    weights = []
    for parts in (1, 4):
        settings = TrainingConfig(epochs=1, batch_size=32, learning_rate=0.02, precision="fp32", accumulate=parts)
        torch.manual_seed(0)
        network = build(NetworkConfig(architecture="plain_cnn", width=4, dropout=0.0), 2)
        data = stripes(64)
        learner = Trainer(network, [32, 32], settings, PLAIN, Resident(data, 32), CPU)
        learner.fit([data], lambda _: None)
        weights.append(torch.cat([value.flatten() for value in learner.network.state_dict().values()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_a_share_that_the_parts_do_not_divide_has_no_empty_part() -> None:
    learner = trainer(stripes(9), batch_size=9, accumulate=4, epochs=1)
    learner.fit([stripes(9)], lambda _: None)
    assert len(learner.history) == 1


def test_balancing_lifts_the_rare_class() -> None:
    """One in nine images is of class 1, and all are noise, so only a balanced loss or sample makes the network guess it."""

    def guessed(**options: Any) -> float:
        both = stripes(1024, seed=2)
        keep = (both.labels == 0) | (torch.arange(1024) % 16 == 1)
        noise = torch.randint(0, 256, both.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        learner = trainer(
            LabelledImages(noise, both.labels, both.votes)[keep.nonzero()[:, 0]], epochs=1, learning_rate=0.005, **options
        )
        last(learner)
        return float((predict(learner.network, noise[:256]).softmax(1)[:, 1]).mean())

    assert guessed() < 0.25
    assert guessed(class_balance="loss") > 0.35
    assert guessed(class_balance="sampling") > 0.35


def test_votes_stand_in_for_the_label_or_are_learnt_beside_it() -> None:
    data = stripes(256)
    turned = torch.eye(2)[1 - data.labels]  # the annotators vote against the label
    voted = LabelledImages(data.images, data.labels, turned)
    assert last(trainer(voted, votes="target")).validation_accuracy < 0.1
    beside = trainer(voted, votes="auxiliary")
    assert last(beside).validation_accuracy > 0.9
    outputs = predict(beside.network, data.images)
    assert outputs.shape == (256, 4)
    assert float((outputs[:, 2:].argmax(1) == 1 - data.labels).float().mean()) > 0.9


def test_images_without_votes_keep_their_label() -> None:
    data = stripes(256)
    assert last(trainer(LabelledImages(data.images, data.labels, torch.zeros(256, 2)), votes="target")).validation_accuracy > 0.9


def test_what_teachers_say_takes_its_share_of_the_target() -> None:
    class TheOpposite:
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            rows = (images.float().diff(dim=2).abs().mean((1, 2, 3)) > images.float().diff(dim=3).abs().mean((1, 2, 3))).long()
            return torch.eye(2)[rows]  # stripes along the rows are class 0; this teacher answers 1

    def taught(weight: float) -> float:
        learner = trainer(stripes(256), teacher_weight=weight)
        learner.teachers = TheOpposite()  # type: ignore[assignment]
        return last(learner).validation_accuracy

    def taught_once(weight: float) -> float:
        data = stripes(256)
        return last(trainer(replace(data, taught=TheOpposite()(data.images)), teacher_weight=weight)).validation_accuracy

    for way in (taught, taught_once):
        assert way(0.1) > 0.9
        assert way(1.0) < 0.1


def test_teachers_answer_with_the_mean_of_their_probabilities_over_both_views() -> None:
    bundle, images = read_bundle(EMBEDDED), stripes(6).images
    network, temperature = load_network(bundle), bundle.card.calibration.temperature
    views = [torch.softmax(predict(network, view) / temperature, 1) for view in (images, images.flip(3))]
    answers = Teachers((bundle, bundle), CPU, "fp32")(images)
    assert torch.allclose(answers, (views[0] + views[1]) / 2, atol=1e-5)
    data = Teachers((bundle,), CPU, "fp32").teach(stripes(6))
    assert torch.allclose(data[torch.tensor([4, 1])].taught, answers[[4, 1]], atol=1e-5)


def test_augmentation_moves_every_image_in_its_own_way_and_repeats_with_its_seed() -> None:
    images = stripes(8).images
    first = augment(images, AugmentationConfig(), torch.Generator().manual_seed(3))
    again = augment(images, AugmentationConfig(), torch.Generator().manual_seed(3))
    assert first.dtype == torch.uint8 and first.shape == images.shape
    assert torch.equal(first, again)
    changes = {int((one.int() - other.int()).abs().sum()) for one, other in zip(first, images, strict=True)}
    assert len(changes) == 8


def test_a_training_begins_with_small_images_and_ends_with_those_that_the_network_takes() -> None:
    learner, sides = trainer(stripes(32), epochs=6, first_px=32), list[int]()
    learner.network.register_forward_hook(lambda network, inputs, output: sides.append(inputs[0].shape[-1]))
    learner.fit([stripes(8)], lambda epoch: None)
    learned, judged = [sides[epoch * 3 : epoch * 3 + 2] for epoch in range(6)], sides[2::3]
    assert learned == [[32, 32]] * 2 + [[40, 40]] * 2 + [[48, 48]] * 2 and judged == [48] * 6


@pytest.mark.parametrize("epochs", range(1, 8))
def test_the_last_epoch_is_always_of_the_full_size(epochs: int) -> None:
    learner, sides = trainer(stripes(32), epochs=epochs, first_px=32), list[int]()
    learner.network.register_forward_hook(lambda network, inputs, output: sides.append(inputs[0].shape[-1]))
    learner.fit([stripes(8)], lambda epoch: None)
    learned = sides[::3]
    assert learned[-1] == 48 and learned == sorted(learned) and (epochs < 3 or learned[0] == 32)


def test_shrinking_keeps_what_is_flat_and_evens_out_what_is_finer_than_its_pixels() -> None:
    checked = 255 * (torch.arange(48) % 2).to(torch.uint8).expand(1, 1, 48, 48)
    assert (shrink(torch.full((2, 3, 48, 48), 77, dtype=torch.uint8), 32) == 77).all()
    assert shrink(checked, 16).float().std() < 20 and torch.equal(shrink(checked, 48), checked)


def test_a_certain_flip_is_a_mirror_image_and_nothing_else() -> None:
    images = stripes(4).images
    config = PLAIN.model_copy(update={"flip": 1.0})
    flipped = augment(images, config, torch.Generator().manual_seed(0))
    assert (flipped.int() - images.flip(3).int()).abs().max() <= 1


def test_erasing_blanks_a_rectangle() -> None:
    images = torch.zeros(16, 1, 48, 48, dtype=torch.uint8)
    erased = augment(images, PLAIN.model_copy(update={"erase": 1.0}), torch.Generator().manual_seed(0))
    shares = (erased == 128).float().mean((1, 2, 3))
    assert (shares > 0.01).all() and (shares < 0.3).all()


def test_the_loop_needs_neither_ray_nor_prefect(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, fer_pipeline.models.training, fer_pipeline.models.recipe; print({'ray', 'prefect'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
