"""What the tests of the page's server share: fixtures in the names of conftest.py, and texts."""

import pytest

TOKEN, PAGE = "secret", "http://127.0.0.1:8000/secret/"
HOSTILE = """<img src=x onerror=alert(1)>'"$(touch x).png"""


@pytest.fixture
def desk(tmp_path):
    """A folder of pictures, with what lies beside it and is nobody's business."""
    from run_cases import texture, write  # here, so that conftest.py loads no more than it needs

    from dip_fast.ui.desk import Desk

    (tmp_path / "photos" / "deep").mkdir(parents=True)
    write(str(tmp_path / "photos" / "noisy.png"), texture(16, 18))
    (tmp_path / "secret.txt").write_text("secret")
    write(str(tmp_path / "private.png"), texture(16, 18))
    return Desk(tmp_path / "photos", tmp_path / "runs")


@pytest.fixture
def client(desk):
    """A browser that knows the token."""
    from starlette.testclient import TestClient

    from dip_fast.ui.server import application

    return TestClient(application(desk, TOKEN, ("127.0.0.1:8000",)), base_url=PAGE)
