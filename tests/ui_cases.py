"""What the tests of the page's server share."""

from run_cases import texture, write

TOKEN, PAGE = "secret", "http://127.0.0.1:8000/secret/"
HOSTILE = """<img src=x onerror=alert(1)>'"$(touch x).png"""


def a_desk(folder):
    """A folder of pictures, with what lies beside it and is nobody's business."""
    from dip_fast.ui.desk import Desk

    (folder / "photos" / "deep").mkdir(parents=True)
    write(str(folder / "photos" / "noisy.png"), texture(16, 18))
    (folder / "secret.txt").write_text("secret")
    write(str(folder / "private.png"), texture(16, 18))
    return Desk(folder / "photos", folder / "runs")


def a_client(desk):
    """A browser that knows the token."""
    from starlette.testclient import TestClient

    from dip_fast.ui.server import application

    return TestClient(application(desk, TOKEN, ("127.0.0.1:8000",)), base_url=PAGE)
