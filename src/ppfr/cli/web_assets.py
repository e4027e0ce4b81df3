"""`ppfr web-assets`."""

from __future__ import annotations

from ppfr.cli.app import app, out


@app.command("web-assets")
def web_assets() -> None:
    """Download the files that the web page of `ppfr serve --page-client` needs, once, into the cache folder.

    These are onnxruntime-web (33 MB from registry.npmjs.org, of which 14 MB are kept) and the face detector YuNet.
    Both are checked against pinned hashes. Without a connection, copy the cache folder ($PPFR_CACHE, else
    ~/.cache/ppfr) from a machine that has one.
    """
    from ppfr.data.detection.yunet import MODEL_SHA256, MODEL_URL
    from ppfr.serving.http.assets import fetch_runtime
    from ppfr.util.fetch import cached

    out.print(str(fetch_runtime()), soft_wrap=True)
    out.print(str(cached(MODEL_URL, MODEL_SHA256)), soft_wrap=True)
