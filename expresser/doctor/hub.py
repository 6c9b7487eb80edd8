"""Whether the Hugging Face hub, or the mirror that HF_ENDPOINT names, answers, and who it takes this machine for."""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from expresser.doctor.finding import Finding

_LOCAL = "folders and what is in the cache work without it"


def hub(timeout: float = 5.0, env: Mapping[str, str] | None = None) -> list[Finding]:
    """Ask the hub, within `timeout` seconds for each question. Nothing but a model's name or a corpus' needs it: never broken."""
    try:
        from huggingface_hub import constants
    except Exception as error:  # the packages' findings say so
        return [
            Finding(
                "hub", "client", "warning", f"huggingface-hub does not load: {error}", "pip install -U huggingface-hub"
            )
        ]
    env = os.environ if env is None else env
    where = constants.ENDPOINT + (" (HF_ENDPOINT)" if "HF_ENDPOINT" in env else "")
    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", "access", "note", f"{where}: not asked, HF_HUB_OFFLINE is set; {_LOCAL}")]
    answered = _within(timeout, lambda: _status(f"{constants.ENDPOINT}/api/models?limit=1", timeout))
    if isinstance(answered, BaseException):
        proxies = ", ".join(
            f"{k}={_bare(v)}" for k, v in sorted(env.items()) if k.lower() in ("http_proxy", "https_proxy", "all_proxy")
        )
        why = (
            f"{type(answered).__name__}: {' '.join(str(answered).split())}"
            if str(answered)
            else type(answered).__name__
        )
        advice = f"{_LOCAL}; for a mirror set HF_ENDPOINT, behind a proxy HTTPS_PROXY{f' (now {proxies})' if proxies else ''}"
        return [Finding("hub", "access", "warning", f"{where}: no answer ({why})", advice)]
    if answered >= 400 and answered != 401:
        return [
            Finding(
                "hub", "access", "warning", f"{where}: answers {answered}", f"look at HF_ENDPOINT and proxies; {_LOCAL}"
            )
        ]
    return [Finding("hub", "access", "ok", f"{where} answers"), _login(constants.ENDPOINT, timeout)]


def _login(endpoint: str, timeout: float) -> Finding:
    """Who is logged in; the token is shown nowhere."""
    from huggingface_hub import get_token

    if get_token() is None:
        return Finding(
            "hub", "login", "note", "nobody is logged in", "for private models and to push: hf auth login, or HF_TOKEN"
        )
    said = _within(timeout, lambda: _json(f"{endpoint}/api/whoami-v2", timeout))
    if isinstance(said, BaseException):
        return Finding("hub", "login", "note", f"a token is set; the hub does not say whose ({type(said).__name__})")
    status, body = said
    if status == 401:
        return Finding(
            "hub",
            "login",
            "warning",
            "a token is set, and the hub does not know it",
            "hf auth login, or another HF_TOKEN",
        )
    name = body.get("name") if isinstance(body, dict) else None
    return Finding(
        "hub",
        "login",
        "ok" if name else "note",
        f"logged in as {name}" if name else f"a token is set; whoami answers {status}",
    )


def _status(url: str, timeout: float) -> int:
    return int(_answer(url, timeout).status_code)


def _json(url: str, timeout: float) -> tuple[int, Any]:
    got = _answer(url, timeout)
    return int(got.status_code), got.json() if got.status_code == 200 else None


def _answer(url: str, timeout: float) -> Any:
    """Through the client's own session, so with its proxies and certificates."""
    from huggingface_hub.utils import build_hf_headers, get_session

    return get_session().get(url, headers=build_hf_headers(), timeout=timeout)


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer, or the error; a TimeoutError after a second more than `seconds`, since looking up a name knows no time-out."""
    box: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            box.put(ask())
        except Exception as error:
            box.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return box.get(timeout=seconds + 1)
    except queue.Empty:
        return TimeoutError(f"nothing within {seconds:g} s")


def _bare(url: str) -> str:
    """Without user and password."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
