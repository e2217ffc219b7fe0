from tests.projections.audit.histories import Trail
def test_x(): assert Trail
