"""Public data by name: what arrives is what is known of it, what broke off goes on, and what refuses says why."""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import tarfile
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from local_server import Handler, Server, running

from expresser import public_data, public_data_http
from expresser.commands_data import DATA
from expresser.corpus.readers_text import read_10x_mtx
from expresser.errors import InputError
from expresser.public_data import PublicData, PublicFile, find
from expresser.public_data_fetch import fetch
from expresser.public_data_unpack import unpack

PAGES = Path(__file__).parent.parent / "docs" / "pages"
BODY = bytes(range(256)) * 40  # 10,240 bytes


@dataclass
class Site(Server):
    """What lies there, and how the server behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)  # of the next answers; then 200
    tags: bool = True  # ETags, by which a changed file is told from the one that was begun
    kind: str = "application/octet-stream"
    cut_once: bool = False
    coding: str = ""


class SiteHandler(Handler):
    server_state: Site
    tag = ""

    def end_headers(self) -> None:
        """Also of an answer that will break off."""
        if self.tag:
            self.send_header("ETag", self.tag)
        super().end_headers()

    def serve(self) -> None:
        state = self.server_state
        path = "/" + self.path.split("://", 1)[-1].partition("/")[2] if "://" in self.path else self.path
        if state.statuses and (status := state.statuses.pop(0)) != 200:
            return self.answer(status, b"no", {"Location": self.path})
        body = state.files.get(path.lstrip("/"))
        if body is None:
            return self.answer(404, b"not found", {"Content-Type": "text/html"})
        self.tag = f'"{hashlib.md5(body).hexdigest()}"' if state.tags else ""
        if self.headers.get("If-Range") not in (None, self.tag):
            del self.headers["Range"]
        about = {"Content-Type": state.kind}
        if state.coding:
            packed = gzip.compress(body)
            return self.answer(200, packed, about | {"Content-Encoding": state.coding})
        self.give(body, about)
        if state.cut_once:
            state.cut.clear()


@pytest.fixture
def site() -> Iterator[Site]:
    yield from running(SiteHandler, Site(files={"a.bin": BODY}))  # type: ignore[misc]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses, no proxy of this machine, no cache of this user."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(public_data_http, "PIECE_BYTES", 1000)
    for name in [key for key in os.environ if key.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EXPRESSER_DATA_CACHE", str(tmp_path / "cache"))


def made(site: Site, *, checksum: str | None = None, body: bytes | None = None, **about: Any) -> PublicData:
    """A data set of the one file a.bin; `body`: what its checksum is taken of."""
    if body is not None:
        checksum = f"sha256:{hashlib.sha256(body).hexdigest()}"
    file = PublicFile(
        f"{site.url}/a.bin", "in/a.bin", "this test", checksum=checksum, checksum_from="this test", **about
    )
    return PublicData(
        name="made", title="Made", kind="rna", page="https://example.org", licence="none", tried="never", files=(file,)
    )


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- what arrives --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_comes_once_and_is_recorded(site: Site, tmp_path: Path, algorithm: str) -> None:
    data = made(site, checksum=f"{algorithm}:{hashlib.new(algorithm, BODY).hexdigest()}", bytes=len(BODY))
    seen: list[tuple[int, int | None, str]] = []
    folder = fetch(data, tmp_path, report=lambda *what: seen.append(what))
    assert (folder / "in/a.bin").read_bytes() == BODY
    assert left(folder) == {"in/a.bin", "source.json"}
    assert seen[-1] == (len(BODY), len(BODY), "a.bin")
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    record = json.loads((folder / "source.json").read_text())["files"]["in/a.bin"]
    assert record["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert record["compared_with"] == data.files[0].checksum
    asked = len(site.asked)
    assert fetch(data, tmp_path) == folder
    assert len(site.asked) == asked
    assert json.loads((folder / "source.json").read_text())["files"]["in/a.bin"] == record


def test_a_file_that_was_damaged_here_comes_again(site: Site, tmp_path: Path) -> None:
    folder = fetch(made(site, body=BODY), tmp_path)
    (folder / "in/a.bin").write_bytes(BODY[:-1] + b"x")
    fetch(made(site, body=BODY), tmp_path)
    assert (folder / "in/a.bin").read_bytes() == BODY


def test_without_a_folder_it_lies_in_the_cache(site: Site, tmp_path: Path) -> None:
    assert fetch(made(site)) == (tmp_path / "cache" / "made").resolve()


def test_bytes_are_those_of_the_file_where_the_server_recodes_them(site: Site, tmp_path: Path) -> None:
    site.coding = "gzip"
    assert (fetch(made(site, body=BODY, bytes=len(BODY)), tmp_path) / "in/a.bin").read_bytes() == BODY


def test_large_companions_come_only_when_asked_for(site: Site, tmp_path: Path) -> None:
    data = made(site)
    more = PublicFile(f"{site.url}/b.bin", "b.bin", "this test", optional=True)
    site.files["b.bin"] = b"more"
    data = replace(data, files=(*data.files, more))
    assert "b.bin" not in left(fetch(data, tmp_path))
    assert "b.bin" in left(fetch(data, tmp_path, optional=True))


# --- what breaks off -----------------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_within_the_call(site: Site, tmp_path: Path) -> None:
    site.cut, site.cut_once = {"a.bin": 3000}, True
    assert (fetch(made(site), tmp_path) / "in/a.bin").read_bytes() == BODY
    assert site.starts("a.bin") == [0, 3000]


@pytest.mark.parametrize("checked", [True, False])
def test_what_came_is_gone_on_with_by_the_next_call(site: Site, tmp_path: Path, checked: bool) -> None:
    data = made(site, body=BODY if checked else None)
    site.cut = {"a.bin": 5000}
    with pytest.raises(InputError, match=r"broke off 5 times .*5\.0 kB are kept: the same command goes on"):
        fetch(data, tmp_path)
    assert not (tmp_path / "made/in/a.bin").exists()
    site.cut, site.asked = {}, []
    fetch(data, tmp_path)
    assert site.starts("a.bin") == [5000]
    assert left(tmp_path / "made") == {"in/a.bin", "source.json"}
    assert (tmp_path / "made/in/a.bin").read_bytes() == BODY


@pytest.mark.parametrize("tags", [True, False])
def test_two_versions_of_a_file_are_never_mixed(site: Site, tmp_path: Path, tags: bool) -> None:
    """By its tag, or, where the server has none and no checksum is known, by beginning anew."""
    site.cut, site.tags = {"a.bin": 5000}, tags
    with pytest.raises(InputError, match="broke off"):
        fetch(made(site), tmp_path)
    site.cut, site.files["a.bin"] = {}, BODY[::-1]
    assert (fetch(made(site), tmp_path) / "in/a.bin").read_bytes() == BODY[::-1]


def test_a_stale_part_is_dropped_where_the_checksum_tells(site: Site, tmp_path: Path) -> None:
    site.tags = False
    part = tmp_path / "made/in/.a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another version" * 100)
    assert (fetch(made(site, body=BODY), tmp_path) / "in/a.bin").read_bytes() == BODY
    assert site.starts("a.bin") == [1800, 0]


def test_a_part_that_is_whole_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    """A call that was killed while it compared the checksum: the server says that nothing is missing."""
    part = tmp_path / "made/in/.a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    assert (fetch(made(site, body=BODY, bytes=len(BODY)), tmp_path) / "in/a.bin").read_bytes() == BODY
    assert not site.asked


# --- what is refused -----------------------------------------------------------------------------------------------------------


def test_another_checksum_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has not the known checksum, sha256:.*recorded by: this test.*not kept"):
        fetch(made(site, body=b"something else"), tmp_path)
    assert left(tmp_path / "made") == set()


def test_another_length_is_refused_before_a_byte_is_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10,240 bytes there, 7 are known"):
        fetch(made(site, bytes=7), tmp_path)
    assert left(tmp_path / "made") == set()


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([404], "no such file .404.*data info"),
        ([403], "does not give it to this machine .403.*by hand"),
        ([407], "proxy wants a name and password"),
        ([503] * 5, "broke off 5 times .*busy or down .503"),
        ([302] * 60, "leads nowhere"),
        ([418], "answered with 418"),
    ],
)
def test_a_servers_refusal_is_said_in_words(site: Site, tmp_path: Path, statuses: list[int], words: str) -> None:
    site.statuses = list(statuses)
    with pytest.raises(InputError, match=words):
        fetch(made(site), tmp_path)
    assert not left(tmp_path / "made")


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429, 200]
    assert (fetch(made(site), tmp_path) / "in/a.bin").read_bytes() == BODY


def test_a_login_page_is_no_file(site: Site, tmp_path: Path) -> None:
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="web page, not the file"):
        fetch(made(site), tmp_path)
    assert not left(tmp_path / "made")


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_offline_is_said_at_once_and_a_file_brought_by_hand_is_taken(site: Site, tmp_path: Path) -> None:
    data = made(replace(site, url=f"http://127.0.0.1:{closed_port()}"), body=BODY)
    with pytest.raises(
        InputError, match=r"offline.*A file that you bring yourself is taken, and checked, as"
    ) as caught:
        fetch(data, tmp_path)
    place = Path(str(caught.value).rpartition(" as ")[2].removesuffix("."))
    place.write_bytes(BODY)
    assert left(fetch(data, tmp_path)) == {"in/a.bin", "source.json"}
    place.write_bytes(BODY[1:])
    with pytest.raises(InputError, match="offline"):
        fetch(data, tmp_path)


def test_a_proxy_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", site.url)
    elsewhere = made(replace(site, url="http://data.invalid"), body=BODY)
    assert (fetch(elsewhere, tmp_path) / "in/a.bin").read_bytes() == BODY
    assert site.asked[0][1] == "http://data.invalid/a.bin"


def test_a_proxy_that_is_not_there_is_named_without_its_password(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{closed_port()}")
    with pytest.raises(InputError, match=r"the proxy cannot be reached or refused .HTTP_PROXY=http://…@127") as caught:
        fetch(made(replace(site, url="http://data.invalid")), tmp_path)
    assert "secret" not in str(caught.value)


def test_too_little_room_is_said_before_it_is_filled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 100))
    with pytest.raises(InputError, match=r"10\.2 kB are to come, more than is free"):
        fetch(made(site), tmp_path)


def test_what_has_no_address_is_fetched_by_hand() -> None:
    with pytest.raises(InputError, match=r"By hand: https://www\.ncbi.*GSE160148.*DM_rep4"):
        fetch(find("colo320_multiome"))


# --- archives ------------------------------------------------------------------------------------------------------------------


def tar_of(path: Path, members: list[tuple[str, bytes | None]], mode: str = "w:gz") -> Path:
    """An archive; content None makes a symbolic link to /etc/passwd."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_is_unpacked_and_what_is_there_stays(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    archive = tar_of(tmp_path / "a.tar", [("./x/genes.tsv", b"g\n"), ("x/y/matrix.mtx", b"m" * 5000)], mode)
    assert [p.relative_to(folder).as_posix() for p in unpack(archive, folder)] == ["x/genes.tsv", "x/y/matrix.mtx"]
    before = (folder / "x/genes.tsv").stat().st_mtime_ns
    (folder / "x/y/matrix.mtx").write_bytes(b"cut")
    unpack(archive, folder)
    assert (folder / "x/y/matrix.mtx").read_bytes() == b"m" * 5000
    assert (folder / "x/genes.tsv").stat().st_mtime_ns == before


def test_an_archive_cannot_replace_what_was_fetched_beside_it(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("{}")
    archive = tar_of(tmp_path / "a.tar", [("x/genes.tsv", b"g"), ("./source.json", b"forged")], "w")
    with pytest.raises(InputError, match="would replace a file that is here"):
        unpack(archive, tmp_path, reserved={"source.json", "a.tar"})
    assert (tmp_path / "source.json").read_text() == "{}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("fine", b"1"), ("../evil", b"2")], "outside the folder"),
        ([("fine", b"1"), ("x/../../evil", b"2")], "outside the folder"),
        ([("fine", b"1"), ("/tmp/evil", b"2")], "outside the folder"),
        ([("fine", b"1"), ("..\\evil", b"2")], "outside the folder"),
        ([("fine", b"1"), ("C:evil", b"2")], "outside the folder"),
        ([("fine", b"1"), ("link", None)], "a link or a device"),
        ([("fine", b"1"), ("./fine", b"2")], "stands twice"),
        ([("fine", b"1"), ("x/.bashrc", b"2")], "a hidden file"),
    ],
)
def test_an_archive_that_reaches_out_is_refused_whole(
    tmp_path: Path, members: list[tuple[str, bytes | None]], words: str
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=f"{words}.*Nothing was unpacked"):
        unpack(tar_of(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert left(tmp_path) == {"a.tar.gz"}


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", [("x", os.urandom(50_000))])
    archive.write_bytes(archive.read_bytes()[:-20_000])
    with pytest.raises(InputError, match="no whole archive"):
        unpack(archive, tmp_path)
    assert left(tmp_path) == {"a.tar.gz"}


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", [("zeros", bytes(1_000_000))])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 999_999))
    with pytest.raises(InputError, match=r"unpacked it takes 1\.0 MB"):
        unpack(archive, tmp_path)
    assert left(tmp_path) == {"a.tar.gz"}


def test_archives_are_opened_only_when_asked(site: Site, tmp_path: Path) -> None:
    site.files["a.bin"] = tar_of(tmp_path / "t.tar", [("inside.txt", b"hi")], "w").read_bytes()
    data = made(site)
    data = replace(data, files=(replace(data.files[0], save_as="a.tar"),))
    assert left(fetch(data, tmp_path)) == {"a.tar", "source.json"}
    assert left(fetch(data, tmp_path, unpacked=True)) == {"a.tar", "source.json", "inside.txt"}


# --- the list ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"save_as": "../evil"}, "no path inside its own folder"),
        ({"save_as": "/evil"}, "no path inside its own folder"),
        ({"save_as": "source.json"}, "downloads need themselves"),
        ({"save_as": ".a.part"}, "downloads need themselves"),
        ({"url": "file:///etc/passwd"}, "begins with https"),
        ({"url": "ftp://x/y"}, "begins with https"),
        ({"checksum": "md5:abc"}, "md5: or sha256: and hex"),
        ({"checksum": "crc:" + "0" * 32}, "md5: or sha256: and hex"),
    ],
)
def test_an_entry_that_would_do_harm_is_refused(change: dict[str, str], words: str) -> None:
    good = {"url": "https://x/y", "save_as": "y", "address_from": "z"}
    PublicFile(**good)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        PublicFile(**(good | change))  # type: ignore[arg-type]


def test_the_list_says_of_each_what_is_known_and_what_not() -> None:
    known = public_data.public_data()
    assert {paper for data in known.values() for paper in data.papers} == set(public_data.PAPERS)
    for data in known.values():
        assert data.licence
        assert data.tried == "never" or time.strptime(data.tried, "%Y-%m-%d")
        assert data.files or data.note, f"{data.name}: neither an address nor a word about it"
        for file in data.files:
            assert (file.checksum is None) == (file.checksum_from is None), file.url
            assert file.address_from


def test_names_and_accessions_find_it_and_a_slip_is_told_what_was_meant() -> None:
    assert find("GSE126074") is find("snareseq_mouse_cortex")
    with pytest.raises(InputError, match="did you mean pbmc3k_multiome"):
        find("pbmc3k_multiom")
    with pytest.raises(InputError, match=r"no public data set is known by this name\. `expresser data list`"):
        find("zzz")


def test_the_page_has_the_list_as_it_is() -> None:
    page = (PAGES / "public_data.md").read_text(encoding="utf-8")
    table = public_data.markdown(public_data.public_data().values())
    assert table in page, "regenerate the table: expresser data list --markdown"


def test_the_pages_name_data_sets_that_exist() -> None:
    for page in ("public_data.md", "reproduce.md"):
        named = [
            word
            for line in (PAGES / page).read_text(encoding="utf-8").splitlines()
            if line.startswith("expresser data get ")
            for word in line.split("#")[0].split("--out")[0].split()[3:]
            if not word.startswith("-")
        ]
        assert named
        for name in named:
            find(name)


@pytest.mark.realdata
def test_the_checksums_are_those_of_the_files_that_were_tested(realdata: Path) -> None:
    for name, held in {
        "gene2vec_pairs": realdata / "genes/gene2vec_ggi",
        "liftover_hg19_hg38": realdata / "annotation",
    }.items():
        for file in find(name).files:
            body = (held / file.save_as).read_bytes()
            assert file.checksum == f"sha256:{hashlib.sha256(body).hexdigest()}"
            assert file.bytes == len(body)


@pytest.mark.parametrize(("name", "inner"), [("snareseq_mouse_cortex", "rna"), ("mouse_atac_atlas", "")])
def test_matrix_files_get_the_names_of_a_folder_that_can_be_read(tmp_path: Path, name: str, inner: str) -> None:
    content = {
        "matrix.mtx": "%%MatrixMarket matrix coordinate integer general\n2 3 2\n1 1 5\n2 3 1\n",
        "genes.tsv": "Malat1\nPtprd\n",
        "features.tsv": "chr1_100_200\nchr1_300_400\n",
        "barcodes.tsv": "A\nB\nC\n",
    }
    for file in find(name).files:
        if file.save_as.startswith(inner) and file.save_as.removeprefix(f"{inner}/").removesuffix(".gz") in content:
            path = tmp_path / file.save_as
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content[path.name.removesuffix(".gz")].encode()
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    matrix = read_10x_mtx(tmp_path / inner)
    (counts,) = matrix.blocks(10)
    assert counts.toarray().tolist() == [[5, 0], [0, 0], [0, 1]]
    assert list(matrix.obs.index) == ["A", "B", "C"]
    assert len(matrix.var) == 2


# --- the command ---------------------------------------------------------------------------------------------------------------


def test_the_command_lists_and_says_what_was_never_tried(capsys: pytest.CaptureFixture[str]) -> None:
    DATA.run(["list", "--paper", "scact"])
    text = capsys.readouterr().out
    assert "pfc_multiome" in text
    assert "by hand" in text
    assert "hgnc" not in text
    assert "never tried where this list was made" in text
    DATA.run(["list", "--kind", "genes", "--json"])
    held = json.loads(capsys.readouterr().out)
    assert {data["kind"] for data in held} == {"genes"}
    DATA.run(["info", "GSE126074"])
    text = capsys.readouterr().out
    assert "md5:068a9754299c4f769d131ce2a4f35134" in text
    assert "no address was tried" in text


def test_the_command_fetches_and_checks(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made(site, body=BODY, bytes=len(BODY))
    monkeypatch.setattr(public_data, "public_data", lambda: {"made": data})
    DATA.run(["get", "made", "--out", str(tmp_path)])
    assert "1 files, 1 compared with a known checksum" in capsys.readouterr().out
    with pytest.raises(InputError, match="no public data set"):
        DATA.run(["get", "made", "other", "--out", str(tmp_path)])
    DATA.run(["check", "made"])
    assert capsys.readouterr().out == "made/in/a.bin: ok, 10,240 bytes\n"
    assert site.asked[-1][0] == "HEAD"
    site.files["a.bin"] = BODY[1:]
    with pytest.raises(SystemExit) as stopped:
        DATA.run(["check"])
    assert stopped.value.code == 1
    assert "not the same: 10,239 bytes there, 10,240 known" in capsys.readouterr().out
    site.statuses = [405, 200]  # a server that has no HEAD
    with pytest.raises(SystemExit):
        DATA.run(["check"])
    assert "10,239" in capsys.readouterr().out
    site.statuses = [404]
    with pytest.raises(SystemExit):
        DATA.run(["check"])
    assert "not reached: there is no such file (404)" in capsys.readouterr().out
