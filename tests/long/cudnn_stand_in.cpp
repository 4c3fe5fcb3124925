// A libcudnn that computes nothing: it keeps what graphs are made of, and prints the tensors of
// each graph and what a plan is run on. test_cudnn_attention.py builds it in place of the real one.
//   STAND_IN_VERSION   what cudnnGetVersion says
//   STAND_IN_REFUSES   "plans": the heuristic finds none; "open": no handle
#include <cudnn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct Attribute {
    int64_t count = 0;
    std::vector<char> bytes;
};
struct Descriptor {
    cudnnBackendDescriptorType_t type;
    std::map<int, Attribute> attributes;
};

Descriptor& of(cudnnBackendDescriptor_t descriptor) {
    return *reinterpret_cast<Descriptor*>(descriptor);
}

bool refuses(const char* what) {
    const char* const refused = std::getenv("STAND_IN_REFUSES");
    return refused != nullptr && std::strcmp(refused, what) == 0;
}

size_t size_of(cudnnBackendAttributeType_t type) {
    switch (type) {
        case CUDNN_TYPE_BOOLEAN:
        case CUDNN_TYPE_CHAR:
            return 1;
        case CUDNN_TYPE_INT64:
        case CUDNN_TYPE_DOUBLE:
        case CUDNN_TYPE_VOID_PTR:
        case CUDNN_TYPE_HANDLE:
        case CUDNN_TYPE_BACKEND_DESCRIPTOR:
            return 8;
        default:
            return 4;
    }
}

std::vector<int64_t> numbers(Descriptor& descriptor, int name) {
    const Attribute& found = descriptor.attributes[name];
    std::vector<int64_t> result(static_cast<size_t>(found.count));
    if (!result.empty()) std::memcpy(result.data(), found.bytes.data(), 8 * result.size());
    return result;
}

void print(const char* name, const std::vector<int64_t>& values) {
    std::printf(" %s", name);
    for (const int64_t value : values) std::printf(" %lld", static_cast<long long>(value));
}

}  // namespace

extern "C" {

size_t cudnnGetVersion() {
    const char* const version = std::getenv("STAND_IN_VERSION");
    return version ? std::strtoul(version, nullptr, 10) : CUDNN_VERSION;
}
const char* cudnnGetErrorString(cudnnStatus_t status) {
    return status == CUDNN_STATUS_SUCCESS ? "fine" : "refused by the stand-in";
}
void cudnnGetLastErrorString(char* message, size_t size) {
    std::snprintf(message, size, "refused by the stand-in");
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
    *handle = reinterpret_cast<cudnnHandle_t>(0x40);
    return refuses("open") ? CUDNN_STATUS_NOT_INITIALIZED : CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* stream) {
    *stream = nullptr;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* made) {
    *made = reinterpret_cast<cudnnBackendDescriptor_t>(new Descriptor{type, {}});
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
    delete &of(descriptor);
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void* values) {
    const char* const bytes = static_cast<const char*>(values);
    const size_t size = size_of(type) * static_cast<size_t>(count);
    of(descriptor).attributes[name] = {count, std::vector<char>(bytes, bytes + size)};
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
    Descriptor& made = of(descriptor);
    if (made.type != CUDNN_BACKEND_TENSOR_DESCRIPTOR) return CUDNN_STATUS_SUCCESS;
    const Attribute& hidden = made.attributes[CUDNN_ATTR_TENSOR_IS_VIRTUAL];
    const Attribute& by_value = made.attributes[CUDNN_ATTR_TENSOR_IS_BY_VALUE];
    const auto set = [](const Attribute& a) { return !a.bytes.empty() && a.bytes[0] != 0; };
    if (set(hidden) || set(by_value)) return CUDNN_STATUS_SUCCESS;
    std::printf("tensor");
    print("uid", numbers(made, CUDNN_ATTR_TENSOR_UNIQUE_ID));
    print("dim", numbers(made, CUDNN_ATTR_TENSOR_DIMENSIONS));
    print("stride", numbers(made, CUDNN_ATTR_TENSOR_STRIDES));
    std::printf("\n");
    return CUDNN_STATUS_SUCCESS;
}
// What was set; of what a plan is found by, one choice without properties.
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted,
                                       int64_t* count, void* values) {
    Descriptor& asked = of(descriptor);
    int64_t found = 0;
    if (asked.attributes.count(name) != 0) {
        const Attribute& kept = asked.attributes[name];
        found = kept.count;
        if (values != nullptr && wanted >= found && type != CUDNN_TYPE_BACKEND_DESCRIPTOR) {
            std::memcpy(values, kept.bytes.data(), kept.bytes.size());
        }
    } else if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
        found = refuses("plans") ? 0 : 1;
    } else if (name == CUDNN_ATTR_ENGINECFG_ENGINE) {
        found = 1;
    } else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        found = 1;
        *static_cast<int64_t*>(values) = 1234;
    } else if ((type == CUDNN_TYPE_INT64 || type == CUDNN_TYPE_INT32) && wanted == 1) {
        found = 1;
        std::memset(values, 0, size_of(type));
    }
    if (count != nullptr) *count = found;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t,
                                  cudnnBackendDescriptor_t pack) {
    Descriptor& given = of(pack);
    std::printf("run");
    print("uids", numbers(given, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS));
    print("at", numbers(given, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS));
    print("workspace", numbers(given, CUDNN_ATTR_VARIANT_PACK_WORKSPACE));
    std::printf("\n");
    return CUDNN_STATUS_SUCCESS;
}
}
