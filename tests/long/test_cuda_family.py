"""The LMO family on the CUDA backend, its kernels executed by the emulator: the CPU's losses, resumed bit by bit."""
import json
import pathlib
import subprocess
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent / 'integration')]
import cli  # noqa: E402
from emulated import EmulatedTest  # noqa: E402
from test_cuda import PRESETS  # noqa: E402

RATES = {'gluon': 1.0, 'clipped-scion': 0.1, 'scion': 2.0**-12, 'scion-unconstrained': 2.0**-12,
         'scion-light': 2.0**-12, 'soda': 2.0**-12}
FAMILY = sorted(path.stem for path in (cli.ROOT / 'configs' / 'optimizer').glob('*.json') if path.stem not in PRESETS)


def optimizer(preset):
    clips = preset not in ('scion-light', 'ef21-muon')
    return {'preset': preset, 'lr': RATES.get(preset, 0.003), 'clip_norm': 0.5 if clips else 0, 'weight_decay': 0.1}


class CudaFamilyTest(EmulatedTest):
    def test_fp32_equals_the_cpu(self):
        self.assertGreater(len(FAMILY), 10)
        for preset in FAMILY:
            with self.subTest(preset):
                groups = json.loads((cli.ROOT / 'configs' / 'optimizer' / f'{preset}.json').read_text())['groups']
                spectral = any(group.get('norm', {}).get('type') == 'spectral' for group in groups)
                # Inside of Newton-Schulz the GPU works in fp16.
                self.both({'optimizer': optimizer(preset), 'run': {'steps': 6}}, bound=2e-3 if spectral else 2e-5)

    def test_resume_under_another_order_of_threads(self):
        for preset in FAMILY:
            with self.subTest(preset):
                self.assert_resumes_exactly({'optimizer': optimizer(preset)})
                subprocess.run(['rm', '-r', 'whole', 'parts'], cwd=self.folder, check=True)
