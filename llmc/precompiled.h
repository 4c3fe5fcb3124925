// Headers of libraries that most files of llmc/train and llmc/io read, compiled once (Makefile). No
// file may rely on them being here: each includes what it uses.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>
