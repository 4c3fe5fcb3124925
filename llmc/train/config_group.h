// One entry of optimizer.groups: from its resolved keys to llmc/optim/config.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "llmc/optim/config.h"
#include "llmc/train/json_merge.h"

namespace lmo {

GroupConfig read_group(const Json& json);
DecayType decay_type(const std::string& name);
const std::vector<Role>& all_roles();

// Validation for the schema. A radius is NUMBER, RULE or "NUMBER*RULE".
std::optional<RadiusConfig> parse_radius(const Json& value);
std::string radius_expected();
bool is_coefficients(const Json& value);  // the name of a set, or [[a, b, c], ...]

}  // namespace lmo
