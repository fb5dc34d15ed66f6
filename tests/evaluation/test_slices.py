import numpy as np

from dare_core.config.domains import Domain
from dare_core.evaluation import statistics
from dare_core.evaluation.examples import ITEM, USER, Examples, make_examples, make_splits
from dare_core.evaluation.slices import by_slice, slices
from dare_core.evaluation.source import Interaction
from dare_core.evaluation.statistics import Bootstrap, auc

from .conftest import hour, random_rows, source_rows

BY_ITEM = ("item never met", "item met 1 to 19 times", "item met 20 to 99 times", "item met 100 times or more")
BY_AGE = ("user's first 10 interactions", "user's 11th to 50th", "user's 51st and later")
BY_USER = ("user not in training", "user in training")


def test_every_test_example_is_in_one_slice_of_each_kind(movies: Domain) -> None:
    examples = make_examples(movies, random_rows(0, 1500))
    splits = make_splits(movies, examples)
    found = slices(examples, splits)
    assert set(found) == {*BY_ITEM, *BY_AGE, *BY_USER}
    for number, split in enumerate(splits):
        for names in (BY_ITEM, BY_AGE, BY_USER):
            count = sum(found[name][number].astype(int) for name in names)
            assert count.tolist() == [1] * (split.test.stop - split.test.start)


def test_an_item_is_as_frequent_as_before_the_tests_and_a_user_as_old_as_before_the_example(movies: Domain) -> None:
    random = np.random.default_rng(1)
    met = []
    for n in range(1500):
        user, item = random.geometric(0.2 if n < 1100 else 0.05), random.geometric(0.12)
        met.append(Interaction(hour(n), f"u{min(user, 60)}", f"i{min(item, 90)}", 1.0 + n % 5))
    rows = source_rows(met, users=61, items=91)
    examples = make_examples(movies, rows)
    splits = make_splits(movies, examples)
    found = slices(examples, splits)
    for number, split in enumerate(splits):
        known = rows.interactions[: split.test.start]
        for place, one in enumerate(rows.interactions[split.test]):
            times = sum(other.item == one.item for other in known)
            item = BY_ITEM[0 if times == 0 else 1 if times < 20 else 2 if times < 100 else 3]
            age = sum(other.user == one.user and other.time < one.time for other in rows.interactions)
            user = BY_AGE[0 if age < 10 else 1 if age < 50 else 2]
            trained = BY_USER[any(other.user == one.user for other in known)]
            for name in (item, user, trained):
                assert found[name][number][place], name
    for name, of_splits in found.items():
        assert any(rows.any() for rows in of_splits), name


def made(count: int) -> tuple[Examples, Bootstrap, list[np.ndarray]]:
    random = np.random.default_rng(2)
    fields = np.stack([1 + random.integers(20, size=count), 1 + random.integers(9, size=count)], axis=1)
    labels = random.integers(2, size=count).astype(np.float32)
    nothing = np.full((count, 1), -1)
    examples = Examples(np.arange(count), fields, nothing, nothing, labels)
    return examples, Bootstrap([statistics.Tested(labels, fields[:, USER])], 2), [fields[:, ITEM] < 5]


def test_a_slice_says_the_auc_of_strict_texts_and_by_how_much_it_is_over_the_other_arms() -> None:
    examples, bootstrap, rows = made(900)
    random = np.random.default_rng(3)
    arms = {"none": 0.0, "shuffled": 0.1, "attributes": 0.4, "strict": 0.8, "relaxed": 0.8}
    noise = random.normal(size=(2, 900))
    logits = {arm: [(signal * examples.labels + noise).astype(np.float32)] for arm, signal in arms.items()}
    rare = [np.arange(900) < 199]
    likes = [examples.labels > 0]
    found = by_slice(bootstrap, logits, {"common": rows, "rare": rare, "likes alone": likes})
    assert list(found) == ["common"]
    common = found["common"]
    assert common["examples"] == rows[0].sum()
    of_arm = {arm: np.mean([auc(examples.labels[rows[0]], one[rows[0]]) for one in logits[arm][0]]) for arm in logits}
    assert np.isclose(common["auc"], of_arm["strict"], atol=1e-5)
    for arm in ("none", "shuffled", "attributes"):
        mean, low, high = common[f"over_{arm}"]
        assert np.isclose(mean, of_arm["strict"] - of_arm[arm], atol=1e-5)
        assert 0 < low < mean < high
