"""The page of prepared scans puts odd ones first, says why, and is one harmless file."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from work import num_calls

from neuro.errors import InputError, NotAScan, ScanError
from neuro.report.qc import Scan, by_suspicion, suspicion, write_qc

PLAIN = Scan(
    study="s",
    series="T1w",
    modality="T1",
    path="sub/T1w.nii.gz",
    source_shape=(176, 240, 256),
    source_spacing_mm=(1.0, 1.0, 1.0),
    orientation="RAS",
    grid=(12, 12, 12),
    num_tokens=1728,
    num_kept=700,
    warnings=(),
)


def cohort(size=20, **changed):
    """Scans that differ a little, as those of one scanner do."""
    return [
        replace(PLAIN, study=f"s{i:03d}", num_kept=680 + 7 * (i % 6), **changed)
        for i in range(size)
    ]


def black(scan):
    return Image.new("RGB", (48, 16))


def write(tmp_path, scans, failures=(), *, picture=black, max_pictures=100, facts=()):
    path = tmp_path / "qc.html"
    write_qc(
        path,
        scans,
        failures,
        picture=picture,
        title="Prepared",
        facts=facts,
        max_pictures=max_pictures,
    )
    return path.read_text(encoding="utf-8")


def test_a_lone_scan_and_equal_scans_and_one_scanner_are_not_suspicious():
    for scans in ([], [PLAIN], [PLAIN] * 2, [PLAIN] * 9, cohort(3), cohort()):
        assert suspicion(scans) == [(0.0, ())] * len(scans)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_kept": 400}, r"kept tokens 23\.1%; the median of the 21 T1 scans is 40\.\d%"),
        ({"num_kept": 60}, r"only 3\.5% of its tokens are kept, less than 5%"),
        ({"num_kept": 1728}, r"all of its 1,728 tokens are kept"),
        ({"num_kept": 2}, r"^2 of its 1,728 tokens are kept, fewer than 4"),
        (
            {"source_shape": (176, 240, 36), "source_spacing_mm": (1.0, 1.0, 7.1)},
            r"coarsest spacing 7\.1 mm; the median of the 21 T1 scans is 1 mm \(robust z \+\d+",
        ),
        ({"source_shape": (176, 240, 100)}, r"field of view bottom to top 100 mm.* is 256 mm"),
        ({"num_tokens": 864, "num_kept": 350}, r"number of tokens 864;.* is 1,728 \(robust z -"),
        ({"warnings": ("sform and qform disagree.",)}, r"^sform and qform disagree\.$"),
    ],
)
def test_the_odd_one_out_is_named_with_numbers(changed, reason):
    scans = [*cohort(), replace(PLAIN, study="odd", **changed)]
    *others, (score, reasons) = suspicion(scans)
    assert score > 0
    assert any(re.search(reason, text) for text in reasons)
    assert others == [(0.0, ())] * 20


def test_modalities_are_compared_with_their_own():
    runs = cohort(6, modality="rsfMRI", source_spacing_mm=(4.0, 4.0, 4.0), source_shape=(48,) * 4)
    assert not any(score for score, _ in suspicion([*cohort(), *runs]))


def test_the_order_of_stored_axes_is_no_difference():
    turned = [replace(scan, source_shape=(256, 176, 240), orientation="IRA") for scan in cohort(3)]
    assert not any(score for score, _ in suspicion([*cohort(), *turned]))


def test_a_second_protocol_is_not_odd_but_a_single_other_scan_is():
    thick = {"source_shape": (176, 240, 64), "source_spacing_mm": (1.0, 1.0, 4.0)}
    assert not any(score for score, _ in suspicion([*cohort(12), *cohort(6, **thick)]))
    assert suspicion([*cohort(12), replace(PLAIN, **thick)])[-1][0] > 0


def test_where_most_scans_are_kept_whole_that_is_no_reason():
    whole = [replace(PLAIN, study=str(i), num_kept=1728) for i in range(5)]
    assert not any(score for score, _ in suspicion(whole))


def test_suspicion_of_twice_as_many_scans_is_twice_the_work():
    suspicion(cohort(10))  # imports
    works = [num_calls(suspicion, cohort(count)) for count in (2000, 4000)]
    assert works[1] < 2.1 * works[0]


def test_the_suspicious_come_first_and_pictures_are_made_in_that_order(tmp_path):
    scans = [
        *cohort(8),
        replace(PLAIN, study="warned", warnings=("uneven slices",)),
        replace(PLAIN, study="empty", num_kept=1),
    ]
    asked = []

    def picture(scan):
        asked.append(scan.study)
        return black(scan)

    page = write(tmp_path, scans, picture=picture)
    assert asked == ["empty", "warned", *(f"s{i:03d}" for i in range(8))]
    places = [page.index(f"<b>{study}</b>") for study in asked]
    assert places == sorted(places)
    assert page.index("Look at these first") < places[0] < places[1]
    assert places[1] < page.index("Nothing odd") < places[2]


@pytest.mark.parametrize("max_pictures", [0, 1, 3, 100])
def test_no_more_pictures_than_asked_for_and_the_rest_are_rows(tmp_path, max_pictures):
    scans = [*cohort(6), replace(PLAIN, study="empty", num_kept=1)]
    asked = []

    def picture(scan):
        asked.append(scan)
        return black(scan)

    page = write(tmp_path, scans, picture=picture, max_pictures=max_pictures)
    shown = min(max_pictures, 7)
    assert len(asked) == page.count("<img") == shown
    assert ("Without a picture" in page) == (shown < 7)
    assert page.count("<td><bdi>s0") + page.count("<td><bdi>empty") == 7 - shown
    assert f"of the {shown} most suspicious" in page or shown == 7
    assert "only 0.1% of its tokens" in page


def test_pictures_are_made_one_at_a_time(tmp_path):
    """The page is already on its way to the disk when a picture is asked for."""
    sizes = []

    def picture(scan):
        (partial,) = tmp_path.glob(".qc.html.*/*")
        sizes.append(partial.stat().st_size)
        return Image.effect_noise((384, 128), 90).convert("RGB")

    write(tmp_path, cohort(6), picture=picture)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    before = write(tmp_path, cohort(2))

    def picture(scan):
        raise ScanError(scan.path, "read", "damaged.", "Build it again.")

    with pytest.raises(ScanError, match="damaged"):
        write(tmp_path, cohort(3), picture=picture)
    assert (tmp_path / "qc.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["qc.html"]


def test_a_full_disk_leaves_the_old_page_and_names_file_and_setting(tmp_path):
    before = write(tmp_path, cohort(2))
    noise = Image.effect_noise((640, 640), 90).convert("RGB")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"qc\.html: .*paths\.cache_dir") as caught:
            write(tmp_path, cohort(9), picture=lambda scan: noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "qc.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["qc.html"]


def test_the_order_of_the_page_can_be_asked_for():
    scans = [*cohort(3), replace(PLAIN, study="empty", num_kept=1)]
    assert by_suspicion(scans) == [3, 0, 1, 2]


def test_what_never_was_a_scan_is_shown_apart_and_does_not_count_as_failed(tmp_path):
    shot = NotAScan("bad/shot.dcm", "find", "is a screen save.", "Export it.")
    page = write(tmp_path, cohort(2), [ScanError("bad/a.nii", "read", "empty.", "Redo."), shot])
    assert re.search(r'<b class="bad">1</b><span class="soft">failed', page)
    assert page.index("bad/a.nii") < page.index("No scans") < page.index("bad/shot.dcm")
    page = write(tmp_path, cohort(2), [shot])
    assert re.search(r'<b>0</b><span class="soft">failed', page)
    assert "<h2>Failed" not in page


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.texts = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("max_pictures", [0, 9])
def test_names_are_no_markup(tmp_path, max_pictures):
    evil = "\"'><script>alert(1)</script><img src=http://x/y onerror=z>&{{ 7 * 7 }}"
    scans = [
        replace(PLAIN, study=evil, series=evil, modality=evil, path=evil, orientation=evil),
        replace(PLAIN, study=evil, warnings=(evil,)),
    ]
    failures = [ScanError(evil, evil, evil, evil)]
    facts = [(evil, evil)]
    page = Reader(write(tmp_path, scans, failures, max_pictures=max_pictures, facts=facts))
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags
    assert tags.count("img") == min(max_pictures, 2)
    for _, attributes in page.elements:
        assert "onerror" not in attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert sum(evil in text for text in page.texts) >= 10


def test_a_name_that_is_no_text_is_still_shown(tmp_path):
    name = b"caf\xe9.nii".decode("utf-8", "surrogateescape")  # as Linux hands over such a name
    page = write(tmp_path, [replace(PLAIN, path=name)], [ScanError(name, "read", "bad.", "Redo.")])
    assert page.count(r"caf\udce9.nii") == 2


def test_nothing_is_loaded_from_outside(tmp_path):
    page = write(tmp_path, cohort(3), [ScanError("a", "read", "empty.", "Redo.")])
    assert "://" not in page
    assert "url(" not in page
    elements = Reader(page).elements
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements}
    assert all("href" not in attributes for _, attributes in elements)
    links = [attributes["src"] for _, attributes in elements if "src" in attributes]
    assert len(links) == 3
    assert all(link.startswith("data:image/webp;base64,") for link in links)


def test_failures_stand_above_the_scans_with_step_reason_and_cure(tmp_path):
    failures = [ScanError(f"bad/{i}.nii", "read", f"reason {i}.", f"cure {i}.") for i in range(40)]
    page = write(tmp_path, cohort(2), failures)
    for i in range(40):
        row = rf"<tr><td><bdi>bad/{i}\.nii</bdi></td><td>read</td>.*reason {i}\..*cure {i}\."
        assert re.search(row, page)
    assert page.index("bad/39.nii") < page.index("<img")
    assert "28 more" in page


def test_the_head_of_the_page_counts(tmp_path):
    scans = [*cohort(4), replace(PLAIN, study="s000", series="FA", modality="dMRI")]
    page = write(tmp_path, scans, [ScanError("a", "read", "empty.", "Redo.")], facts=[("k", "v")])
    counts = re.findall(r"<b[^>]*>(\d+)</b><span class=\"soft\">([^<]*)", page)
    assert counts == [
        ("5", "series prepared"),
        ("4", "studies"),
        ("0", "to look at"),
        ("1", "failed"),
    ]
    assert page.count("<svg") == 2
    assert "4 series · 4 studies · none to look at" in page
    assert "<dt>k</dt><dd>v</dd>" in page


def test_where_everything_failed_the_page_still_says_so(tmp_path):
    page = write(tmp_path, [], [ScanError("a.nii", "read", "empty.", "Redo.")])
    assert "a.nii" in page
    assert "<img" not in page


def test_the_same_scans_give_the_same_bytes(tmp_path):
    scans = [*cohort(5), replace(PLAIN, study="empty", num_kept=1)]
    assert write(tmp_path, scans) == write(tmp_path, list(scans))
    assert Path(tmp_path / "qc.html").stat().st_size < 40_000
