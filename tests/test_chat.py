from tests import tiny
def test_x(root): assert tiny.build
