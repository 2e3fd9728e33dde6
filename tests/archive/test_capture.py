import pytest

from fer_pipeline.archive.capture import UNKNOWN, Capture, camera_name, local_time


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        ("2024:05:01 12:30:00", None, "2024-05-01T12:30:00"),
        ("2024:05:01 12:30:00\0", "+02:00\0", "2024-05-01T12:30:00+02:00"),
        ("2024:05:01 12:30:00", "Z", "2024-05-01T12:30:00+00:00"),
        ("2024:05:01 12:30:00", "   :  ", "2024-05-01T12:30:00"),  # as cameras leave it blank
        ("2024:05:01 12:30:00", "+99:99", "2024-05-01T12:30:00"),
        ("2024-05-01T12:30:00.250000Z", None, "2024-05-01T12:30:00+00:00"),
        ("2024-05-01T12:30:00-0330", None, "2024-05-01T12:30:00-03:30"),
        ("0000:00:00 00:00:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("2024:13:01 12:30:00", None, None),
        ("1904-01-01T00:00:00.000000", None, None),
        ("1970:01:01 00:00:00", None, None),
        ("0001:01:01 00:00:00", "+14:00", None),
        ("2024:05:01", None, None),
        (None, None, None),
        (b"2024:05:01 12:30:00", None, None),
        (7, 7, None),
    ],
)
def test_a_time_is_local_and_has_an_offset_only_where_the_file_says_one(
    text: object, offset: object, expected: str | None
) -> None:
    assert local_time(text, offset) == expected


@pytest.mark.parametrize(
    ("make", "model", "expected"),
    [
        ("Canon", "Canon EOS R6", "Canon EOS R6"),
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("samsung\0", " SM-G991B \0\0", "samsung SM-G991B"),
        ("Google", None, "Google"),
        (None, "", None),
        (b"x", 3, None),
        ("a\nb", "\x1b[31mred", "a b [31mred"),
        ("m" * 500, "n" * 500, f"{'m' * 80} {'n' * 80}"),
    ],
)
def test_a_camera_is_one_printable_name(make: object, model: object, expected: str | None) -> None:
    assert camera_name(make, model) == expected


def test_a_frame_is_taken_later_than_the_start_of_its_video() -> None:
    assert Capture("2024-12-31T23:59:58+01:00", "x").after(2500) == Capture("2025-01-01T00:00:00+01:00", "x")
    assert Capture("9999-12-31T23:59:59").after(2000) == UNKNOWN.after(5) == UNKNOWN
