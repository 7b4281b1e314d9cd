"""Where a server listens: TLS, Unix sockets, behind a proxy, and with which keys.

Invariant tested: what cannot be listened on is refused before the engine starts; a socket's file
never outlives its server, and nobody else's file is touched.
"""

import contextlib
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
import trustme
from servers import running_server

from plamo_ref import cli
from plamo_ref.commands import serve as serve_module
from plamo_ref.server.edge.listen import Address, ServeError, listen

KEY = "two words"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Option of TLS → file."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: folder / f"{name}.pem" for name in ("ssl_keyfile", "ssl_certfile", "ca")}
    issued.private_key_pem.write_to_path(paths["ssl_keyfile"])
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths["ssl_certfile"], append=True)
    authority.cert_pem.write_to_path(paths["ca"])
    return {name: str(path) for name, path in paths.items()}


def options(files: dict[str, str]) -> list[str]:
    return ["--ssl-keyfile", files["ssl_keyfile"], "--ssl-certfile", files["ssl_certfile"]]


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_one_server_with_tls_a_key_of_two_words_behind_a_proxy(
    authority, files, tmp_path, monkeypatch
):
    """Together, for a start takes seconds: they do not touch each other."""
    monkeypatch.setenv("PLAMO_REF_API_KEY", KEY)
    proxy = ("--root-path", "/plamo/", "--max-model-len", "64")
    with running_server(tmp_path, *options(files), *proxy) as server:
        assert server.address.startswith("https://127.0.0.1:")
        headers = {"Authorization": f"Bearer {KEY}"}
        with server.client(verify=trusting(authority)) as client:
            for prefix in ("", "/plamo"):  # the proxy may strip it, or not
                assert client.get(f"{prefix}/health").status_code == 200
                assert client.get(f"{prefix}/v1/models").status_code == 401
                answer = client.get(f"{prefix}/v1/models", headers=headers)
                assert answer.status_code == 200, answer.text
                assert client.get(f"{prefix}/nowhere", headers=headers).status_code == 404
            assert client.get("/plamohealth").status_code == 401
            for half in ("two", "words", "two words more"):
                wrong = {"Authorization": f"Bearer {half}"}
                assert client.get("/v1/models", headers=wrong).status_code == 401
            document = client.get("/openapi.json", headers=headers).json()
            assert document["servers"] == [{"url": "/plamo"}]
        with (
            pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
            server.client(verify=True) as stranger,
        ):
            stranger.get("/health")


def test_a_unix_socket_is_served_and_gone_afterwards(tmp_path):
    path = tmp_path / "plamo.sock"
    with running_server(tmp_path, "--uds", str(path), "--max-model-len", "64") as server:
        assert server.address == f"unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://plamo", timeout=60) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
            body = {"prompt": "x", "max_tokens": 3, "stream": True}
            assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
        assert not path.stat().st_mode & stat.S_IWOTH  # as the umask says
        with pytest.raises(ServeError, match="another server does"), listen(Address(uds=str(path))):
            pass
    assert not path.exists()


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[None]:
    """The file of a server that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    yield


def test_a_socket_that_was_left_behind_is_replaced_and_another_file_is_not(tmp_path):
    path = tmp_path / "a.sock"
    with left_behind(path), listen(Address(uds=str(path))) as listener:
        assert listener.getsockname() == str(path)
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ServeError, match="no socket"), listen(Address(uds=str(path))):
        pass
    assert path.read_text() == "precious"
    for wrong in (tmp_path / "nowhere" / "a.sock", tmp_path / ("x" * 200)):
        with pytest.raises(ServeError, match="cannot listen"), listen(Address(uds=str(wrong))):
            pass


def test_what_tls_cannot_use_is_named(files, tmp_path):
    key, certificate = files["ssl_keyfile"], files["ssl_certfile"]
    other = trustme.CA().issue_cert("localhost")
    other_key = tmp_path / "other.pem"
    other.private_key_pem.write_to_path(other_key)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:geheim", "-in", key, "-out", locked]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        good = Address(
            ssl_certfile=certificate, ssl_keyfile=str(locked), ssl_keyfile_password="geheim"
        )
        assert isinstance(good.context(), ssl.SSLContext)
        with pytest.raises(ServeError, match=r"locked\.pem"):  # and nobody is asked for it
            Address(ssl_certfile=certificate, ssl_keyfile=str(locked)).context()
    for fields, says in (
        ({"ssl_certfile": str(tmp_path / "none.pem")}, r"none\.pem"),
        ({"ssl_certfile": key}, "ssl_keyfile"),
        ({"ssl_certfile": certificate}, "ssl_certfile"),  # there is no key in it
        ({"ssl_certfile": certificate, "ssl_keyfile": str(other_key)}, r"other\.pem"),
        ({"ssl_keyfile": key}, "--ssl-keyfile needs --ssl-certfile"),
        ({"ssl_cert_reqs": 2}, "--ssl-cert-reqs needs --ssl-certfile"),
        (
            {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_cert_reqs": 2},
            "needs --ssl-ca-certs",
        ),
        (
            {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ca_certs": key},
            "--ssl-ca-certs",
        ),
        ({"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ciphers": "none"}, "ciphers none"),
    ):
        with pytest.raises(ServeError, match=says):
            Address(**fields).context()
    mutual = Address(
        ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=files["ca"], ssl_cert_reqs=2
    )
    context = mutual.context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert Address().context() is None


# --- the options ----------------------------------------------------------------------------------


def parsed(*args: str) -> dict:
    context = serve_module.serve.make_context("serve", list(args))
    return context.params


def test_a_repeatable_option_takes_several_values_as_vllm_does():
    given = parsed("--served-model-name", "a", "b", "--api-key", "k 1", "k2", "--port", "1")
    assert (given["served_model_names"], given["api_keys"], given["port"]) == (
        ("a", "b"),
        ("k 1", "k2"),
        1,
    )
    given = parsed("--api-key", "k1", "--served-model-name=a", "--api-key", "k2")
    assert (given["served_model_names"], given["api_keys"]) == (("a",), ("k1", "k2"))
    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        parsed("--port", "1", "a-model", "2")


def test_a_key_of_the_environment_is_one_key(monkeypatch):
    monkeypatch.setenv("PLAMO_REF_API_KEY", "one key with spaces")
    assert parsed()["api_keys"] == ("one key with spaces",)
    assert parsed("--api-key", "x")["api_keys"] == ("x",)


@pytest.mark.parametrize("key", ["", " ", " a", "a\n", "a\rb", "a\x7fb"])
def test_a_key_that_cannot_be_sent_is_refused(capsys, key):
    assert cli.main(["serve", "--api-key", key]) == 2
    assert "a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--root-path", "plamo"], "begins with /"),
        (["--ssl-keyfile", "nowhere.pem"], "nowhere.pem"),
        (["--uds", os.devnull], "no socket"),
        (["--ssl-keyfile", __file__], "needs --ssl-certfile"),
    ],
)
def test_an_address_that_cannot_be_is_one_line_and_no_engine_starts(capsys, args, says):
    assert cli.main(["serve", *args]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
