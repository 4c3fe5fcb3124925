"""What tests/integration/test_communication.py holds against the reference in NumPy, for every kind of estimator, of
momentum and of compressed message."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'integration'))
import test_communication as quick  # noqa: E402
from test_communication import ADAM, EMA, FROBENIUS, IGT, STORM, ef21, groups, hessian, rank, top  # noqa: E402


class EstimatorLongTest(quick.CommunicationTest):
    CASES = quick.EstimatorTest.CASES
    check_all = quick.EstimatorTest.check_all

    def test_points(self):
        self.check_all([name for name in self.CASES if not name.startswith(('central', 'segment'))], 1)

    def test_products(self):
        self.check_all([name for name in self.CASES if name.startswith(('central', 'segment'))], 1)

    def test_small_batches_one_by_one(self):
        self.check({'estimator': {'type': 'page', 'small': 1, 'probability': 0.2}, 'groups': groups(EMA)}, 1,
                   batch={'micro_batch': 1})

    def test_averages_and_rates_that_fall(self):
        power = {'type': 'ema', 'eta_power': 0.5}
        for name, q, p, estimator in (('Polyak', 0.5, '3/4', {'type': 'plain'}), ('IGT', 4 / 7, '5/7', IGT),
                                      ('STORM', '2/3', '2/3', {'type': 'storm'}),
                                      ('Hessian', '2/3', 0.66, {'type': 'hessian'})):
            with self.subTest(name):
                self.check({'groups': groups({**power, 'eta_power': q}), 'estimator': estimator, 'lr': 0.1}, 1,
                           schedule={'decay': {'type': 'power', 'power': p}})


class Ef21LongTest(quick.CommunicationTest):
    def test_up_in_nine_bits(self):
        for name, up in {'topk': top(natural=True), 'rank': rank(natural=True),
                         'columns': {'type': 'columns', 'fraction': 0.4, 'natural': True}}.items():
            with self.subTest(name):
                self.check({'groups': FROBENIUS, 'communication': ef21(up)}, 3)

    def test_momenta(self):
        """Adam is the server's, all others the workers'."""
        nesterov, lion = {'type': 'nesterov', 'beta': 0.9}, {'type': 'lion', 'beta1': 0.9, 'beta2': 0.95}
        for name, chosen in {'one': groups(nesterov, {'type': 'heavy_ball', 'beta': 0.8}, ADAM),
                             'two': groups({**nesterov, 'ema': True}, lion, {'type': 'none'}),
                             'three': groups({**EMA, 'start': 'gradient'}, ADAM, lion)}.items():
            with self.subTest(name):
                self.check({'groups': chosen, 'communication': ef21(top())}, 3)

    def test_with_estimators(self):
        """Workers estimate, and clip, what they have; points and differences are of the weights that all hold."""
        clipped = {**STORM, 'clip': 1.0, 'clip_correction': 2.0}
        for name, estimator, way in (('storm', clipped, ef21(top())), ('igt', IGT, ef21(None, top())),
                                     ('hessian', hessian(), ef21(rank(), top()))):
            with self.subTest(name):
                self.check({'groups': groups(EMA), 'estimator': estimator, 'communication': way}, 3)
