"""precision.master "split" in a run of every preset that goes with it."""
import pathlib
import sys

from cli import ROOT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'integration'))
from test_split_master import REFUSED, SplitMasterBase  # noqa: E402

PRESETS = {path.stem for path in (ROOT / 'configs' / 'optimizer').glob('*.json')}


class SplitPresetsTest(SplitMasterBase):
    def test_every_preset_resumes_exactly_and_stores_fp32(self):
        self.assertGreater(len(PRESETS - REFUSED), 15)
        self.resume_presets(sorted(PRESETS - REFUSED))
