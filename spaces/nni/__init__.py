"""Any model space of NNI (`pip install 'compress[nni]'`) as a space: `nni:package.module.Class`."""

from spaces.nni.space import NNIConfig, NNISpace

__all__ = ["NNIConfig", "NNISpace"]
