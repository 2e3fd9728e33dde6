"""Items are begun ahead of the caller, within bounds, and come in order."""

from fer_pipeline.base.read_ahead import read_ahead


def test_items_come_in_order_and_a_bounded_number_is_begun_ahead() -> None:
    begun: list[int] = []
    for item, number in read_ahead(range(20), lambda item: begun.append(item) or len(begun), most=3):  # type: ignore[func-returns-value]
        assert number == item + 1
        assert len(begun) <= item + 5
    assert begun == list(range(20))


def test_what_is_begun_weighs_at_most_so_much_but_for_one_item_alone() -> None:
    weights = [1, 1, 1, 9, 1, 1, 1, 1]
    under_way: set[int] = set()
    for item, _ in read_ahead(range(len(weights)), under_way.add, 100, lambda item: weights[item], 3):
        assert sum(weights[one] for one in under_way) <= 3 or under_way == {3} or len(under_way) == 1 or item not in under_way
        under_way.discard(item)
    assert not under_way
