"""What a task sees at which path: `parse` reads and checks, `resolve` gives one mount as a frozen value.

Sources:

    s3://bucket[/prefix][?mode=rw]                  read-only unless mode=rw
    volume://name or volume://vol_id                created where a name is new
    /path or ~/path                                 on the machine that submits
    https://host/file[#sha256=HEX]                  http:// only with a checksum, or from a loopback host
    git+https://host/repo[@ref]                     also git+ssh:// and git+file://
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flow_sdk.errors import ValidationError

DEFAULT_TARGET = "/data"

SCHEMES = ("s3", "volume", "https", "http", "git+https", "git+ssh", "git+file", "git+http")

VOLUME_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
VOLUME_NAME_MAX = 64

# A mount on one of these, or (second row) also below it, takes away what the machine itself runs on.
_SYSTEM = ("/", "/home", "/opt", "/root", "/run", "/tmp", "/usr", "/var")
_SYSTEM_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys"),
    *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/sbin"),
)

_SUPPORTED = "Supported sources: s3://, volume://, an absolute local path, https://, git+https://, git+ssh://."

# Other tools' names for what we have, where the spelling alone would not lead there.
_SCHEME_ALIASES = {
    "s3a": "s3",
    "s3n": "s3",
    "vol": "volume",
    "git": "git+https",
    "ssh": "git+ssh",
    "github": "git+https",
}


class Mount(NamedTuple):
    """One source at one path. Fields that do not belong to its kind are None.

    Args:
        kind: "s3", "volume", "local", "https" or "git".
        source: as `parse` stores it.
        target: where the task sees it, absolute.
        read_only: whether the task is kept from writing to it.
        bucket: of s3.
        prefix: of s3, without slashes around it; "" is the whole bucket.
        name: of a volume given by name; the file's own name for https.
        volume_id: of a volume given by id.
        path: of a local source, absolute.
        url: what https downloads and git clones.
        sha256: of https, 64 lower-case hex digits.
        ref: of git: a branch, tag or commit; None is the repository's default branch.
    """

    kind: str
    source: str
    target: str
    read_only: bool
    bucket: str | None = None
    prefix: str | None = None
    name: str | None = None
    volume_id: str | None = None
    path: str | None = None
    url: str | None = None
    sha256: str | None = None
    ref: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


def parse(mounts: str | Mapping[str, str] | Iterable[str] | None, *, must_exist: bool = True) -> dict[str, str]:
    """Read a config's mounts into {target: source}, parents before what is mounted below them.

    Args:
        mounts: one source, placed at /data; a mapping of target to source; or "TARGET=SOURCE" texts.
        must_exist: look whether local sources are there. Off for configs of the past.

    Raises:
        ValidationError: any of them cannot be right, or two claim one target.
    """
    found: dict[str, str] = {}
    for where, what in _pairs(mounts):
        _refuse_swapped(where, what)
        target = check_target(where)
        source = resolve(target, what, must_exist=must_exist).source
        if target in found:
            raise ValidationError(
                f"Mount path {target} already in use by {found[target]}.",
                [f"Mount {source} at a path of its own, such as {target}2."],
            )
        found[target] = source
    return dict(sorted(found.items(), key=lambda item: item[0].count("/")))


def resolve(target: str, source: str, *, must_exist: bool = True) -> Mount:
    """Read one mount.

    Raises:
        ValidationError: the target or the source cannot be right; a local source is missing.
    """
    target = check_target(target)
    if not isinstance(source, str):
        raise ValidationError(f"The source of mount {target} must be text, not {_kind(source)}.", [_SUPPORTED])
    source = source.strip()
    if not source:
        raise ValidationError(f"The source of mount {target} is empty.", [_SUPPORTED])
    if "\0" in source:
        raise ValidationError(f"The source of mount {target} has a NUL character in it.")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme is None:
        return _local(target, source, must_exist)
    refuse_credentials(source, f"The source of mount {target}")
    kind, rest = scheme[1].lower(), source[scheme.end() :]
    if kind == "s3":
        return _s3(target, rest)
    if kind == "volume":
        return _volume(target, rest)
    if kind in ("https", "http"):
        return _https(target, kind, rest)
    if kind in ("git+https", "git+http", "git+ssh", "git+file"):
        return _git(target, kind, rest, must_exist)
    raise _unknown_scheme(target, kind, rest)


def needs_aws(mounts: Mapping[str, str]) -> bool:
    """Whether any source asks for AWS credentials."""
    return any(source.lower().startswith("s3://") for source in mounts.values())


def check_target(target: str, what: str = "Mount path") -> str:
    """The normal form of a path at which something is to be mounted.

    Raises:
        ValidationError: it is no absolute path, or mounting there would break the machine.
    """
    if not isinstance(target, str):
        raise ValidationError(f"{what} must be text, not {_kind(target)}.", ["Use an absolute path such as /data."])
    if "\0" in target:
        raise ValidationError(f"{what} {target!r} has a NUL character in it.")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if not target.startswith("/"):
        if not parts or ":" in target:
            raise ValidationError(f"{what} must be an absolute path such as /data.", ["Use /data."])
        right = "/" + "/".join(part for part in parts if part not in ("..", "~"))
        raise ValidationError(f"{what} {target!r} is not absolute, did you mean {right!r}?", [f"Use {right}."])
    if ".." in parts:
        right = os.path.normpath("/" + "/".join(parts))
        raise ValidationError(f"{what} {target!r} must not contain '..'.", [f"Write the path out: {right}."])
    path = "/" + "/".join(parts)
    if path in _SYSTEM or any(path == tree or path.startswith(tree + "/") for tree in _SYSTEM_TREES):
        raise ValidationError(
            f"{what} {path} would hide a part of the system that the machine needs.",
            ["Use a path of your own, such as /data or /mnt/data."],
        )
    return path


def check_volume_name(name: str) -> str:
    """A volume's name, as providers take it.

    Raises:
        ValidationError: it is none; the suggestion is a name made from it.
    """
    if isinstance(name, str) and len(name) <= VOLUME_NAME_MAX and re.fullmatch(VOLUME_NAME, name):
        return name
    made = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).lstrip("-0123456789")[:VOLUME_NAME_MAX].strip("-")
    raise ValidationError(
        f"Invalid volume name {_short(name)}: use 1 to {VOLUME_NAME_MAX} lower-case letters, digits and dashes, "
        "beginning with a letter.",
        [f"Name it {made}."] if made else ["Name it for what it holds, such as training-data."],
    )


def is_volume_id(text: str) -> bool:
    return re.fullmatch(r"vol_[A-Za-z0-9_-]+", text) is not None


def refuse_credentials(url: str, what: str) -> None:
    """Raise where a URL carries a password or a token; the message holds neither.

    A source is stored, logged and shown, so nothing secret may be in it.
    """

    from urllib.parse import parse_qsl

    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    login = scheme.lower() in ("git+ssh", "ssh") and ":" not in user
    # A password with a slash in it ends the authority early: what is left of it looks like a port.
    broken = re.search(r":[^\]0-9][^\]]*$|:[0-9]+[^0-9\]:][^\]]*$", authority) is not None and "@" in rest
    query = re.split(r"[?#]", rest, maxsplit=1)[1] if re.search(r"[?#]", rest) else ""
    names = [name for name, _ in parse_qsl(query.replace("#", "&").replace("?", "&"), keep_blank_values=True)]
    secret = next((name for name in names if _is_secret(name)), None)
    if (at and not login) or broken:
        raise ValidationError(
            f"{what} has a user name or password in it ({_where(url)}).",
            ["Leave it out of the URL: it would be stored and shown with the task.", _HOW_SECRET],
        )
    if secret is not None:
        raise ValidationError(
            f"{what} has a credential in it, {secret!r} ({_where(url)}).",
            [f"Leave {secret!r} out of the URL: it would be stored and shown with the task.", _HOW_SECRET],
        )


_HOW_SECRET = "Give the secret through env and fetch the data in the command."


def _is_secret(name: str) -> bool:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return plain in ("key", "sig", "auth", "pwd", "pass", "jwt", "sas", "authorization") or any(
        word in plain
        for word in ("token", "secret", "password", "passwd", "signature", "credential", "apikey", "accesskey")
    )


def _where(url: str) -> str:
    """A URL as far as it surely holds no secret: scheme and host."""
    match = re.match(
        r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?([/?#]|$)", url
    )
    if match is None or "@" in url[match.end() :]:
        return url.partition("://")[0] + "://…"
    return f"{match[1]}://{match[2]}{match[3] or ''}/…"


def _pairs(mounts: str | Mapping[str, str] | Iterable[str] | None) -> list[tuple[Any, Any]]:
    if mounts is None:
        return []
    if isinstance(mounts, str):
        return [(DEFAULT_TARGET, mounts)]
    if isinstance(mounts, Mapping):
        return list(mounts.items())
    if isinstance(mounts, (list, tuple)):
        return [_split(item) for item in mounts]
    raise ValidationError(
        f"mounts must be a source or a mapping of path to source, not {_kind(mounts)}.",
        ['Write mounts="s3://bucket/data" or mounts={"/data": "s3://bucket/data"}.'],
    )


def _split(item: Any) -> tuple[str, str]:
    """One "TARGET=SOURCE", or a lone source for /data; "=" is also a character of paths and URLs."""
    if not isinstance(item, str):
        raise ValidationError(f"A mount must be text, not {_kind(item)}.", ["Write it as /data=s3://bucket/prefix."])
    left, equals, right = item.partition("=")
    if not equals or "://" in left or (item.startswith(("/", "~")) and Path(item).expanduser().exists()):
        return DEFAULT_TARGET, item
    return left, right


def _refuse_swapped(target: Any, source: Any) -> None:
    if isinstance(target, str) and isinstance(source, str) and "://" in target and source.startswith("/"):
        refuse_credentials(target, "A mount")
        raise ValidationError(
            f"The mount of {_where(target)} has its path and source the wrong way round.",
            [f"Write the path first: {source}, then the source."],
        )


def _s3(target: str, rest: str) -> Mount:
    where, _, query = rest.partition("?")
    bucket, _, prefix = where.partition("/")
    if bad := _bad_bucket(bucket):
        suggestions = [f"Use s3://{bucket.lower()}."] if not _bad_bucket(bucket.lower()) else []
        raise ValidationError(f"Invalid S3 bucket name {_short(bucket)} for mount {target}: {bad}.", suggestions)
    prefix = "/".join(part for part in prefix.split("/") if part)
    if ".." in prefix.split("/"):
        raise ValidationError(f"The S3 prefix {prefix!r} of mount {target} must not contain '..'.")
    mode = _mode(target, query)
    source = f"s3://{bucket}" + (f"/{prefix}" if prefix else "") + ("?mode=rw" if mode == "rw" else "")
    return Mount("s3", source, target, read_only=mode != "rw", bucket=bucket, prefix=prefix)


def _mode(target: str, query: str) -> str:
    from urllib.parse import parse_qsl

    options = parse_qsl(query, keep_blank_values=True) if query else []
    for name, _ in options:
        if name != "mode":
            near = ", did you mean mode?" if name.lower().startswith("m") else "; the only one is mode."
            raise ValidationError(f"Unknown option {_short(name)} of the S3 mount {target}{near}", ["Add ?mode=rw."])
    values = {value for _, value in options}
    if not values <= {"rw", "ro"} or len(values) > 1:
        raise ValidationError(
            f"Invalid mode of the S3 mount {target}: it must be one of ro and rw.",
            ["Add ?mode=rw to write to the bucket.", "Leave it out to read only."],
        )
    return values.pop() if values else "ro"


def _bad_bucket(name: str) -> str | None:
    """Why S3 has no bucket of this name (Amazon S3 user guide, "General purpose bucket naming rules")."""
    if not 3 <= len(name) <= 63:
        return "it must have 3 to 63 characters"
    if not re.fullmatch(r"[a-z0-9.-]+", name):
        return "it may have only lower-case letters, digits, dots and dashes"
    if not (name[0].isalnum() and name[-1].isalnum()):
        return "it must begin and end with a letter or digit"
    if ".." in name:
        return "it must not have two dots in a row"
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", name):
        return "it must not look like an IP address"
    if name.startswith(("xn--", "sthree-", "amzn-s3-demo-")) or name.endswith(
        ("-s3alias", "--ol-s3", ".mrap", "--x-s3")
    ):
        return "its beginning or end is reserved by Amazon"
    return None


def _volume(target: str, rest: str) -> Mount:
    name = rest.removesuffix("/")
    if "/" in name or "?" in name or "#" in name:
        whole = re.split(r"[/?#]", name, maxsplit=1)[0]
        raise ValidationError(
            f"A volume is mounted whole, so nothing may follow the name in the source of mount {target}.",
            [f"Use volume://{whole}."] if whole else [],
        )
    if is_volume_id(name):
        return Mount("volume", f"volume://{name}", target, read_only=False, volume_id=name)
    check_volume_name(name)
    return Mount("volume", f"volume://{name}", target, read_only=False, name=name)


def _local(target: str, source: str, must_exist: bool) -> Mount:
    if not source.startswith(("/", "~")):
        raise _relative(target, source)
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise ValidationError(
            f"No home folder is known for {source!r} of mount {target}.", ["Write the path out."]
        ) from None
    normal = os.path.realpath(path) if ".." in path.parts else os.path.normpath(path)
    normal = "/" + normal.lstrip("/")
    if must_exist and not os.path.exists(normal):
        raise _missing(target, source, normal)
    return Mount("local", normal, target, read_only=False, path=normal)


def _relative(target: str, source: str) -> ValidationError:
    if scp := re.fullmatch(r"([A-Za-z0-9._-]+@)?([A-Za-z0-9.-]+\.[A-Za-z]+):(?!/)(.+)", source):
        right = f"git+ssh://{scp[1] or 'git@'}{scp[2]}/{scp[3]}"
        return ValidationError(f"The source of mount {target} is no URL, did you mean {right}?", [f"Use {right}."])
    if typo := re.match(r"([A-Za-z][A-Za-z0-9+]*):/*", source):
        if "@" in source or "?" in source:
            return ValidationError(
                f"The source of mount {target} is no URL: '//' must follow {typo[0]!r}.", [_SUPPORTED]
            )
        scheme = _scheme_for(typo[1].lower())
        if scheme is not None:
            right = f"{scheme}://{source[typo.end() :]}"
            return ValidationError(
                f"The source {_short(source)} of mount {target} is no URL, did you mean {right}?", [f"Use {right}."]
            )
    suggestions = [f"Use {os.path.abspath(source)} for that path on this machine."]
    if re.fullmatch(VOLUME_NAME, source):
        suggestions.append(f"Use volume://{source} for the volume of that name.")
    if not _bad_bucket(source):
        suggestions.append(f"Use s3://{source} for the bucket of that name.")
    return ValidationError(
        f"The local path {_short(source)} of mount {target} is not absolute.", [*suggestions, _SUPPORTED]
    )


def _missing(target: str, source: str, path: str) -> ValidationError:
    before, colon, after = source.rpartition(":")
    if colon and after.startswith("/") and os.path.exists(before):
        return ValidationError(
            f"The local path {source!r} of mount {target} does not exist.",
            [f"Write {after}={before} to mount it there."],
        )
    suggestions = []
    parent, name = os.path.split(path)
    if os.path.isdir(parent):
        from difflib import get_close_matches

        try:
            names = os.listdir(parent)
        except OSError:
            names = []
        suggestions = [f"Did you mean {os.path.join(parent, near)}?" for near in get_close_matches(name, names, n=1)]
    return ValidationError(
        f"The local path {path!r} of mount {target} does not exist.",
        [*suggestions, "Create it first, or check the spelling."],
    )


def _https(target: str, scheme: str, rest: str) -> Mount:
    from urllib.parse import unquote, urlsplit

    url, _, fragment = rest.partition("#")
    host, shown = _host(target, f"{scheme}://{url}")
    path = urlsplit(f"{scheme}://{url}").path
    sha256 = _sha256(target, fragment) if "#" in rest else None
    if scheme == "http" and sha256 is None and not _is_loopback(host):
        raise ValidationError(
            f"The source {shown} of mount {target} is plain http without a checksum, so anyone could change it.",
            ["Use https:// where the host has it.", "Add #sha256= and the file's SHA-256."],
        )
    if path.endswith((".git", ".git/")):
        raise ValidationError(
            f"The source {shown} of mount {target} is a git repository, did you mean git+{scheme}://?",
            [f"Put git+ in front: git+{scheme}://{host}{path.removesuffix('/')}."],
        )
    name = unquote(path.rpartition("/")[2])
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValidationError(
            f"The source {shown} of mount {target} names no file.",
            ["Give the URL of one file, such as https://host/model.bin."],
        )
    authority, slash, tail = url.partition("/")
    clean = f"{scheme}://{authority.lower()}{slash}{tail}"
    source = clean + (f"#sha256={sha256}" if sha256 else "")
    return Mount("https", source, target, read_only=True, name=name, url=clean, sha256=sha256)


def _sha256(target: str, fragment: str) -> str:
    name, _, digest = fragment.partition("=")
    if name == "sha256" and re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        return digest.lower()
    if name == "sha256":
        raise ValidationError(
            f"The SHA-256 of mount {target} must be 64 hex digits, not {len(digest)} characters.",
            ["Print it with: sha256sum FILE"],
        )
    raise ValidationError(
        f"Only #sha256= and 64 hex digits may follow '#' in the source of mount {target}.",
        ["Print the checksum with: sha256sum FILE"],
    )


def _git(target: str, scheme: str, rest: str, must_exist: bool) -> Mount:
    from urllib.parse import unquote

    if "?" in rest or "#" in rest:
        raise ValidationError(
            f"Nothing may follow the repository but @ref in the source of mount {target}.",
            ["Name a branch, tag or commit with @ref at the end."],
        )
    authority, slash, path = rest.partition("/")
    user, login, name = authority.rpartition("@")
    if scheme == "git+file" and must_exist and "@" in path and os.path.exists(unquote(slash + path)):
        path = path.replace("@", "%40")
    path, at, ref = (slash + path).rpartition("@") if "@" in path else (slash + path, "", "")
    url = f"{scheme.removeprefix('git+')}://{user}{login}{name.lower()}{path}"
    if at and not _is_ref(ref):
        raise ValidationError(
            f"Invalid git ref {_short(ref)} in the source of mount {target}.",
            ["Use a branch, tag or commit, as in git+https://host/repo@main."],
        )
    if scheme == "git+file":
        if authority or not path.strip("/"):
            raise ValidationError(
                f"The source of mount {target} must name an absolute path: git+file:///path/to/repo.",
                [f"Use git+file:///{authority}{path}."] if authority else [],
            )
        if must_exist and not os.path.exists(unquote(path)):
            raise _missing(target, unquote(path), unquote(path))
    else:
        host, shown = _host(target, url)
        if not path.strip("/"):
            raise ValidationError(
                f"The source {shown} of mount {target} names no repository.", ["Use git+https://host/owner/repo."]
            )
        if scheme == "git+http" and not _is_loopback(host):
            raise ValidationError(
                f"The source {shown} of mount {target} is plain http, so the code could be changed on its way.",
                [f"Use git+https://{host}{path}."],
            )
    source = f"git+{url}" + (f"@{ref}" if ref else "")
    return Mount("git", source, target, read_only=False, url=url, ref=ref or None)


def _is_ref(ref: str) -> bool:
    """Whether git would take it (git-check-ref-format(1)), and not for an option."""
    return (
        re.fullmatch(r"[^\x00-\x20\x7f~^:?*\[\\-][^\x00-\x20\x7f~^:?*\[\\]*", ref) is not None
        and not any(bad in ref for bad in ("..", "//", "@{", "/."))
        and not ref.startswith(("/", "."))
        and not ref.endswith(("/", ".", ".lock"))
    )


def _host(target: str, url: str) -> tuple[str, str]:
    """A URL's host, and the URL without query for use in a message."""

    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValidationError(f"The source of mount {target} is no valid URL.", [_SUPPORTED]) from None
    name = re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", host) or (":" in host and "[" in parts.netloc)
    if not name or port == 0 or re.search(r"[\x00-\x20\x7f]", url):
        why = "has a space or control character in it" if re.search(r"[\x00-\x20\x7f]", url) else "names no valid host"
        raise ValidationError(
            f"The source of mount {target} {why}.",
            ["Write a space in a URL as %20."] if "space" in why else [_SUPPORTED],
        )
    return host, url.partition("?")[0]


def _is_loopback(host: str) -> bool:
    return (
        host == "localhost"
        or host.endswith(".localhost")
        or host == "::1"
        or bool(re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))
    )


def _unknown_scheme(target: str, scheme: str, rest: str) -> ValidationError:
    if scheme == "file":
        return ValidationError(
            f"Flow cannot mount file:// sources, write the path itself for mount {target}.",
            [f"Use {rest}."] if rest.startswith("/") else [_SUPPORTED],
        )
    near = _scheme_for(scheme)
    meant = f", did you mean {near}://?" if near else "."
    return ValidationError(
        f"Flow cannot mount {scheme}:// sources, as asked for {target}{meant}",
        [*([f"Use {near}://{rest}."] if near else []), _SUPPORTED],
    )


def _scheme_for(scheme: str) -> str | None:
    from difflib import get_close_matches

    if scheme in SCHEMES:
        return scheme
    if scheme in _SCHEME_ALIASES:
        return _SCHEME_ALIASES[scheme]
    # Short names are near to everything: gs and s3 differ in one letter, and are two clouds.
    near = get_close_matches(scheme, SCHEMES, n=1, cutoff=0.75) if len(scheme) > 3 else []
    return near[0] if near else None


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
