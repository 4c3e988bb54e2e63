"""The mount grammar: what each source becomes, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_sdk.errors import ValidationError
from flow_sdk.mounts import Mount, check_target, check_volume_name, needs_aws, parse, resolve

HEX = "0123456789abcdef" * 4
SECRET = "hunter2-do-not-show"


def refused(source: object, target: object = "/data") -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parse({target: source})  # type: ignore[dict-item]
    error = caught.value
    assert "\n" not in error.message
    assert error.message.endswith((".", "?"))
    return error


# What is right


@pytest.mark.parametrize(
    ("source", "canonical", "fields"),
    [
        ("s3://my-bucket", "s3://my-bucket", {"bucket": "my-bucket", "prefix": "", "read_only": True}),
        ("S3://my-bucket/", "s3://my-bucket", {"prefix": ""}),
        ("s3://my-bucket/datasets/train", "s3://my-bucket/datasets/train", {"prefix": "datasets/train"}),
        ("s3://my-bucket/data/", "s3://my-bucket/data", {"prefix": "data", "read_only": True}),
        ("s3://my-bucket//a//b", "s3://my-bucket/a/b", {"prefix": "a/b"}),
        ("s3://my-bucket/a b/é", "s3://my-bucket/a b/é", {"prefix": "a b/é"}),
        ("s3://my-bucket/x@y", "s3://my-bucket/x@y", {"prefix": "x@y"}),
        ("s3://my.bucket.1/x?mode=rw", "s3://my.bucket.1/x?mode=rw", {"prefix": "x", "read_only": False}),
        ("s3://my-bucket?mode=rw", "s3://my-bucket?mode=rw", {"bucket": "my-bucket", "read_only": False}),
        ("s3://my-bucket/x?mode=ro", "s3://my-bucket/x", {"read_only": True}),
        (
            "volume://my-datasets",
            "volume://my-datasets",
            {"name": "my-datasets", "volume_id": None, "read_only": False},
        ),
        ("volume://a/", "volume://a", {"name": "a"}),
        ("volume://vol_abc123DEF", "volume://vol_abc123DEF", {"volume_id": "vol_abc123DEF", "name": None}),
        ("https://h.example/m/model.bin", "https://h.example/m/model.bin", {"name": "model.bin", "sha256": None}),
        ("HTTPS://H.Example/Model.bin", "https://h.example/Model.bin", {"url": "https://h.example/Model.bin"}),
        ("https://h.example:8443/a%20b.bin", "https://h.example:8443/a%20b.bin", {"name": "a b.bin"}),
        ("https://h.example/m?download=true", "https://h.example/m?download=true", {"name": "m", "read_only": True}),
        (
            f"https://h.example/m#sha256={HEX.upper()}",
            f"https://h.example/m#sha256={HEX}",
            {"url": "https://h.example/m", "sha256": HEX},
        ),
        (f"http://h.example/m#sha256={HEX}", f"http://h.example/m#sha256={HEX}", {"url": "http://h.example/m"}),
        ("http://127.0.0.1:8000/m", "http://127.0.0.1:8000/m", {"kind": "https"}),
        ("http://localhost/m", "http://localhost/m", {"kind": "https"}),
        ("http://[::1]:80/m", "http://[::1]:80/m", {"kind": "https"}),
        ("git+https://h.example/a/b", "git+https://h.example/a/b", {"url": "https://h.example/a/b", "ref": None}),
        ("git+https://h.example/a/b.git@v1.2", "git+https://h.example/a/b.git@v1.2", {"ref": "v1.2"}),
        ("git+https://h.example/a@feature/x", "git+https://h.example/a@feature/x", {"ref": "feature/x"}),
        ("git+https://H.example/A@Main", "git+https://h.example/A@Main", {"url": "https://h.example/A", "ref": "Main"}),
        ("git+ssh://git@h.example/a/b@main", "git+ssh://git@h.example/a/b@main", {"url": "ssh://git@h.example/a/b"}),
        ("git+ssh://Me@H.example:22/a", "git+ssh://Me@h.example:22/a", {"url": "ssh://Me@h.example:22/a"}),
        ("git+http://127.0.0.1:3000/a", "git+http://127.0.0.1:3000/a", {"kind": "git"}),
    ],
)
def test_sources(source: str, canonical: str, fields: dict[str, object]) -> None:
    mount = resolve("/data", source)
    assert mount.source == canonical
    assert {name: getattr(mount, name) for name in fields} == fields
    assert resolve("/data", canonical) == mount


@pytest.mark.parametrize(
    "name", ["plain", "with space", "quo'te\"s", "new\nline", "ünïcode", "-dash", "a=b", "a:b", "#hash", "q?x=1", "a@b"]
)
def test_local_paths_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    mount = resolve("/data", f"{tmp_path}/{name}/")
    assert (mount.kind, mount.path, mount.source) == ("local", f"{tmp_path}/{name}", f"{tmp_path}/{name}")
    assert resolve("/data", mount.source) == mount
    assert parse([f"/x={tmp_path}/{name}"]) == {"/x": f"{tmp_path}/{name}"}
    assert parse([f"{tmp_path}/{name}"]) == {"/data": f"{tmp_path}/{name}"}


def test_home_and_dotdot_in_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("/data", "~/real").path == f"{tmp_path}/real"
    assert resolve("/data", "~").path == str(tmp_path)
    assert resolve("/data", f"{tmp_path}/link").path == f"{tmp_path}/link"
    assert resolve("/data", f"{tmp_path}/link/../sub").path == f"{tmp_path}/real/sub"


def test_a_file_can_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    assert resolve("/model.bin", str(tmp_path / "model.bin")).kind == "local"


def test_git_file_repositories(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    mount = resolve("/code", f"git+file://{repo}@main")
    assert (mount.url, mount.ref) == (f"file://{repo}", "main")
    at = tmp_path / "me@work"
    at.mkdir()
    mount = resolve("/code", f"git+file://{at}")
    assert (mount.url, mount.ref) == (f"file://{tmp_path}/me%40work", None)
    assert resolve("/code", mount.source) == mount
    error = refused(f"git+file://{tmp_path}/rep@main")
    assert "does not exist" in error.message
    assert error.suggestions[0] == f"Did you mean {repo}?"


# The shapes a config takes


def test_one_source_is_seen_at_data() -> None:
    assert parse("s3://my-bucket/datasets/imagenet") == {"/data": "s3://my-bucket/datasets/imagenet"}


@pytest.mark.parametrize("nothing", [None, {}, [], ()])
def test_no_mounts(nothing: object) -> None:
    assert parse(nothing) == {}  # type: ignore[arg-type]


def test_the_guides_mapping() -> None:
    given = {
        "/datasets": "s3://my-bucket/datasets/imagenet",
        "/models": "volume://pretrained-models",
        "/cache": "volume://build-cache",
    }
    assert parse(given) == given


def test_texts_of_the_command_line() -> None:
    texts = ["/train=s3://my-bucket/train?mode=rw", "/m/=volume://models", "s3://my-bucket/x?mode=rw"]
    assert parse(texts) == {
        "/train": "s3://my-bucket/train?mode=rw",
        "/m": "volume://models",
        "/data": "s3://my-bucket/x?mode=rw",
    }


def test_parents_come_before_what_is_below_them() -> None:
    given = {"/data/a/b": "volume://c", "/data/a": "volume://b", "/z": "volume://z", "/data": "volume://a"}
    assert list(parse(given)) == ["/z", "/data", "/data/a", "/data/a/b"]


def test_to_json_holds_what_is_there() -> None:
    assert resolve("/d/", "s3://my-bucket/x?mode=rw").to_json() == {
        "kind": "s3",
        "source": "s3://my-bucket/x?mode=rw",
        "target": "/d",
        "read_only": False,
        "bucket": "my-bucket",
        "prefix": "x",
    }
    mount = resolve("/d", "git+https://h.example/a@main")
    assert Mount(**json.loads(json.dumps(mount.to_json()))) == mount


def test_aws_is_needed_only_for_s3() -> None:
    assert needs_aws(parse({"/a": "volume://a", "/b": "S3://my-bucket"}))
    assert not needs_aws(parse({"/a": "volume://s3", "/b": "https://s3.example/x"}))
    assert not needs_aws({})


@pytest.mark.parametrize("mounts", [3, True, {"s3://b"}, b"s3://b"])
def test_a_shape_that_is_none(mounts: object) -> None:
    with pytest.raises(ValidationError, match="must be a source or a mapping") as caught:
        parse(mounts)  # type: ignore[arg-type]
    assert 'mounts="s3://bucket/data"' in caught.value.suggestions[0]


# Targets


@pytest.mark.parametrize(
    ("target", "normal"),
    [
        ("/data", "/data"),
        ("/data/", "/data"),
        ("//data//x", "/data/x"),
        ("/data/./x", "/data/x"),
        ("/a b/ü", "/a b/ü"),
        ("/usr/local/data", "/usr/local/data"),
        ("/var/lib/docker", "/var/lib/docker"),
        ("/home/me/data", "/home/me/data"),
        ("/devices", "/devices"),
        ("/etcetera", "/etcetera"),
        ("/workspace", "/workspace"),
        ("/mnt", "/mnt"),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_targets(target: str, normal: str) -> None:
    assert check_target(target) == normal
    assert check_target(normal) == normal


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "//",
        "/.",
        "/bin",
        "/boot",
        "/dev",
        "/dev/shm",
        "/etc",
        "/etc/ssh",
        "/home",
        "/lib",
        "/lib64/x",
        "/proc",
        "/proc/1",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/tmp",
        "/usr",
        "/usr/bin",
        "/usr/lib/x",
        "/var",
        "/opt",
        "//etc",
    ],
)
def test_targets_that_would_break_the_machine(target: str) -> None:
    error = refused("s3://my-bucket", target)
    assert "would hide a part of the system" in error.message
    assert error.suggestions == ["Use a path of your own, such as /data or /mnt/data."]


@pytest.mark.parametrize(
    ("target", "message", "suggestion"),
    [
        ("data", "'data' is not absolute, did you mean '/data'?", "Use /data."),
        ("./data/x", "'./data/x' is not absolute, did you mean '/data/x'?", "Use /data/x."),
        ("~/data", "'~/data' is not absolute, did you mean '/data'?", "Use /data."),
        ("", "Mount path must be an absolute path such as /data.", "Use /data."),
        ("/data/../etc", "must not contain '..'", "Write the path out: /etc."),
        ("/..", "must not contain '..'", "Write the path out: /."),
        ("s3://my-bucket", "must be an absolute path", "Use /data."),
    ],
)
def test_targets_that_are_no_absolute_path(target: str, message: str, suggestion: str) -> None:
    error = refused("volume://x", target)
    assert message in error.message
    assert error.suggestions == [suggestion]


@pytest.mark.parametrize("target", [None, 3, b"/data", "/da\0ta"])
def test_targets_that_are_no_text(target: object) -> None:
    assert "Mount path" in refused("volume://x", target).message


def test_two_sources_at_one_target() -> None:
    with pytest.raises(ValidationError) as caught:
        parse({"/data": "s3://my-bucket", "/data/": "volume://other"})
    assert caught.value.message == "Mount path /data already in use by s3://my-bucket."
    assert caught.value.suggestions == ["Mount volume://other at a path of its own, such as /data2."]
    with pytest.raises(ValidationError, match="Mount path /data already in use"):
        parse(["s3://my-bucket", "/data=volume://x"])
    with pytest.raises(ValidationError, match="Mount path /data already in use"):
        parse(["/data=volume://x", "//data=volume://x"])


def test_path_and_source_the_wrong_way_round() -> None:
    error = refused("/data", "s3://my-bucket")
    assert error.message == "The mount of s3://my-bucket/… has its path and source the wrong way round."
    assert error.suggestions == ["Write the path first: /data, then the source."]


# Sources


@pytest.mark.parametrize(
    ("source", "message", "suggestion"),
    [
        ("s3://", "Invalid S3 bucket name ''", None),
        ("s3://ab", "3 to 63 characters", None),
        ("s3://" + "a" * 64, "3 to 63 characters", None),
        ("s3://My-Bucket/x", "only lower-case letters", "Use s3://my-bucket."),
        ("s3://my_bucket", "only lower-case letters, digits, dots and dashes", None),
        ("s3://-bucket", "begin and end with a letter or digit", None),
        ("s3://my..bucket", "two dots in a row", None),
        ("s3://192.168.0.1/x", "must not look like an IP address", None),
        ("s3://xn--bucket", "reserved by Amazon", None),
        ("s3://my-bucket/a/../b", "must not contain '..'", None),
        ("s3://my-bucket?mode=rx", "must be one of ro and rw", "Add ?mode=rw to write to the bucket."),
        ("s3://my-bucket?mode=rw&mode=ro", "must be one of ro and rw", None),
        ("s3://my-bucket?mod=rw", "Unknown option 'mod' of the S3 mount /data, did you mean mode?", "Add ?mode=rw."),
        ("s3://my-bucket?region=eu", "the only one is mode", "Add ?mode=rw."),
        ("s3:/my-bucket", "did you mean s3://my-bucket?", "Use s3://my-bucket."),
        ("s3:my-bucket", "did you mean s3://my-bucket?", "Use s3://my-bucket."),
        ("volume://My Data", "Invalid volume name 'My Data'", "Name it my-data."),
        ("volume://1st", "Invalid volume name '1st'", "Name it st."),
        ("volume://data-", "Invalid volume name 'data-'", "Name it data."),
        ("volume://", "Invalid volume name ''", "Name it for what it holds, such as training-data."),
        ("volume://" + "a" * 65, "1 to 64", "Name it " + "a" * 64 + "."),
        ("volume://data/sub", "mounted whole", "Use volume://data."),
        ("volume://data?mode=ro", "mounted whole", "Use volume://data."),
        ("volume:data", "did you mean volume://data?", "Use volume://data."),
        ("https://h.example/", "names no file", "Give the URL of one file, such as https://host/model.bin."),
        ("https://h.example", "names no file", None),
        ("https://h.example/%2e%2e", "names no file", None),
        ("https:///x", "names no valid host", None),
        ("https://h.example:99999/x", "no valid URL", None),
        ("https://[bad/x", "no valid URL", None),
        ("https://h.example/a b", "has a space", "Write a space in a URL as %20."),
        ("https://h.example/x#sha256=12", "must be 64 hex digits, not 2 characters", "Print it with: sha256sum FILE"),
        ("https://h.example/x#part", "Only #sha256= and 64 hex digits", None),
        ("http://h.example/x", "plain http without a checksum", "Use https:// where the host has it."),
        ("http://127.0.0.1.evil.example/x", "plain http without a checksum", None),
        (
            "https://h.example/a/b.git",
            "did you mean git+https://?",
            "Put git+ in front: git+https://h.example/a/b.git.",
        ),
        ("https:/h.example/x", "did you mean https://h.example/x?", "Use https://h.example/x."),
        ("git+https://h.example", "names no repository", "Use git+https://host/owner/repo."),
        ("git+https://h.example/a@", "Invalid git ref ''", None),
        ("git+https://h.example/a@--upload-pack=x", "Invalid git ref", None),
        ("git+https://h.example/a@x..y", "Invalid git ref 'x..y'", None),
        ("git+https://h.example/a@x.lock", "Invalid git ref 'x.lock'", None),
        ("git+https://h.example/a#main", "Nothing may follow the repository but @ref", None),
        ("git+https://h.example/a?x=1", "Nothing may follow the repository but @ref", None),
        ("git+http://h.example/a", "is plain http", "Use git+https://h.example/a."),
        ("git+file://repo", "must name an absolute path", "Use git+file:///repo."),
        (
            "git@h.example:a/b.git",
            "did you mean git+ssh://git@h.example/a/b.git?",
            "Use git+ssh://git@h.example/a/b.git.",
        ),
        ("gs://bucket/x", "Flow cannot mount gs:// sources, as asked for /data.", None),
        ("hf://org/model", "Flow cannot mount hf:// sources", None),
        ("s3a://my-bucket", "did you mean s3://?", "Use s3://my-bucket."),
        ("volumes://x", "did you mean volume://?", "Use volume://x."),
        ("htps://h.example/x", "did you mean https://?", "Use https://h.example/x."),
        ("git://h.example/a", "did you mean git+https://?", "Use git+https://h.example/a."),
        ("file:///srv/data", "write the path itself", "Use /srv/data."),
        ("", "is empty", None),
        ("   ", "is empty", None),
        ("/da\0ta", "NUL", None),
        (None, "must be text, not nothing", None),
        (7, "must be text, not int", None),
        ("~no-such-user-here/x", "No home folder is known", "Write the path out."),
    ],
)
def test_sources_that_are_refused(source: object, message: str, suggestion: str | None) -> None:
    error = refused(source)
    assert message in error.message
    if suggestion is not None:
        assert error.suggestions[0] == suggestion


def test_an_unknown_scheme_is_told_what_there_is() -> None:
    assert refused("gs://bucket/x").suggestions[-1].startswith("Supported sources: s3://, volume://")


def test_a_relative_path_is_told_the_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused("./data")
    assert error.message == "The local path './data' of mount /data is not absolute."
    assert error.suggestions[0] == f"Use {tmp_path}/data for that path on this machine."
    named = refused("training-data").suggestions
    assert "Use volume://training-data for the volume of that name." in named
    assert "Use s3://training-data for the bucket of that name." in named


def test_a_missing_path_is_told_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    error = refused(f"{tmp_path}/imagenett")
    assert error.message == f"The local path '{tmp_path}/imagenett' of mount /data does not exist."
    assert error.suggestions[0] == f"Did you mean {tmp_path}/imagenet?"
    assert refused(f"{tmp_path}/imagenet:/x").suggestions == [f"Write /x={tmp_path}/imagenet to mount it there."]
    assert "does not exist" in refused("/" + "a" * 300).message


def test_a_missing_path_is_fine_in_a_config_of_the_past(tmp_path: Path) -> None:
    assert parse(f"{tmp_path}/gone", must_exist=False) == {"/data": f"{tmp_path}/gone"}
    assert parse(f"git+file://{tmp_path}/gone@x", must_exist=False) == {"/data": f"git+file://{tmp_path}/gone@x"}


@pytest.mark.parametrize(
    "source",
    [
        "https://user:{}@h.example/x",
        "https://{}@h.example/x",
        "https://{}:@h.example/x",
        "https://user:a/{}@h.example/x",
        "https://user:{}/b@h.example/x",
        "https://h.example/x?token={}",
        "https://h.example/x?a=1&access_token={}",
        "https://h.example/x?X-Amz-Signature={}&X-Amz-Date=1",
        "https://h.example/x?X-Amz-Security-Token={}",
        "https://h.example/x?AWSAccessKeyId={}",
        "https://h.example/x?sig={}",
        "https://h.example/x?api_key={}",
        "https://h.example/x?key={}",
        "https://h.example/x?Pass%77ord={}",
        "https://h.example/x#token={}",
        "http://127.0.0.1/x?secret={}",
        "s3://AKIA:{}@my-bucket/x",
        "s3://my-bucket/x?X-Goog-Signature={}",
        "volume://user:{}@data",
        "gs://user:{}@bucket/x",
        "wat://h.example/x?password={}",
        "git+https://{}@h.example/a/b@main",
        "git+https://oauth2:{}@h.example/a/b",
        "git+ssh://git:{}@h.example/a/b",
        "git+https://h.example/a?private_token={}",
        "s3:/user:{}@my-bucket",
        "https:/h.example/x?token={}",
    ],
)
@pytest.mark.parametrize("shape", ["source", "list", "swapped"])
def test_credentials_are_refused_and_not_shown(source: str, shape: str) -> None:
    url = source.format(SECRET)
    mounts = {"source": url, "list": [f"/data={url}"], "swapped": {url: "/data"}}[shape]
    with pytest.raises(ValidationError) as caught:
        parse(mounts)  # type: ignore[arg-type]
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__context__


def test_a_credential_is_named_with_what_to_do_instead() -> None:
    error = refused(f"https://h.example/x?token={SECRET}")
    assert error.message == "The source of mount /data has a credential in it, 'token' (https://h.example/…)."
    assert error.suggestions[-1] == "Give the secret through env and fetch the data in the command."


# Volume names


@pytest.mark.parametrize("name", ["a", "data", "training-data", "a1", "a--b", "x" * 64])
def test_volume_names(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a-", "a_b", "a.b", "x" * 65, "a\n", "é", None, 3])
def test_volume_names_that_are_none(name: str) -> None:
    with pytest.raises(ValidationError, match="Invalid volume name") as caught:
        check_volume_name(name)
    made = caught.value.suggestions[0].removeprefix("Name it ").removesuffix(".")
    if "," not in made:
        assert check_volume_name(made) == made


# Properties

_prefix = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/?\0"), min_size=1, max_size=8), max_size=3)


@given(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{1,20})[a-z0-9]\Z"), _prefix, st.booleans())
def test_s3_round_trip(bucket: str, parts: list[str], write: bool) -> None:
    text = "/".join([f"s3://{bucket}", *parts]) + ("?mode=rw" if write else "")
    try:
        mount = resolve("/data", text)
    except ValidationError:
        assert ".." in parts or bucket.startswith(("xn--", "sthree-")) or bucket.endswith(("-s3alias", "--x-s3"))
        return
    assert (mount.bucket, mount.read_only) == (bucket, not write)
    assert resolve("/data", mount.source) == mount


_url = st.lists(
    st.sampled_from(
        [*"sS3:/?#@=.~-&+%[]\0\n", "://", "git+", "https", "volume", "s3", "a", "bucket", "mode", "rw", "é", " "]
    )
    | st.text(max_size=4),
    max_size=12,
).map("".join)


@given(_url)
def test_any_text_is_a_source_or_one_clear_error(text: str) -> None:
    try:
        mount = resolve("/data", text, must_exist=False)
    except ValidationError as error:
        assert error.message.endswith((".", "?"))
    else:
        assert resolve("/data", mount.source, must_exist=False) == mount


@given(st.text(max_size=20))
def test_any_text_is_a_target_or_one_clear_error(text: str) -> None:
    try:
        target = check_target(text)
    except ValidationError as error:
        assert error.message.endswith((".", "?"))
    else:
        assert target.startswith("/")
        assert check_target(target) == target
