// SPDX-License-Identifier: Apache-2.0
//
// Classifies images with a .tflite file through the LiteRT C API.
//
//   classify model.tflite images.f32 [top]
//
// images.f32 holds little-endian float32 values in [0, 1], image after image, as the model takes
// them, without a header. Prints what examples/device/classify.py prints.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "litert/c/litert_common.h"
#include "litert/c/litert_compiled_model.h"
#include "litert/c/litert_environment.h"
#include "litert/c/litert_model.h"
#include "litert/c/litert_options.h"
#include "litert/c/litert_tensor_buffer.h"

namespace {

// Outputs that are not negative and sum to 1 within this are taken for probabilities.
constexpr float kSumTolerance = 0.05f;

void Check(LiteRtStatus status, const std::string& what) {
  if (status != kLiteRtStatusOk) {
    throw std::runtime_error(what + " failed: LiteRtStatus " + std::to_string(status) +
                             ", see litert/c/litert_common.h");
  }
}

// Owns a LiteRT handle; the handles are pointers to types that only LiteRT knows.
template <typename Handle>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, void (*)(Handle)>;

std::vector<float> ReadFloats(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot open " + path);
  const std::streamoff bytes = file.tellg();
  if (bytes <= 0 || bytes % sizeof(float) != 0) {
    throw std::runtime_error(path + " has " + std::to_string(bytes) +
                             " bytes, expected a positive multiple of 4");
  }
  std::vector<float> values(bytes / sizeof(float));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(values.data()), bytes)) {
    throw std::runtime_error("cannot read " + path);
  }
  for (float value : values) {
    if (!std::isfinite(value)) throw std::runtime_error(path + " has values that are not finite");
  }
  return values;
}

std::size_t CountElements(const LiteRtLayout& layout, unsigned first) {
  std::size_t count = 1;
  for (unsigned i = first; i < layout.rank; ++i) count *= layout.dimensions[i];
  return count;
}

// A model of one float32 input and one float32 output [batch, classes], with a buffer for each.
class Classifier {
 public:
  explicit Classifier(const std::string& path) {
    LiteRtEnvironment environment = nullptr;
    Check(LiteRtCreateEnvironment(0, nullptr, &environment), "LiteRtCreateEnvironment");
    environment_.reset(environment);

    LiteRtModel model = nullptr;
    Check(LiteRtCreateModelFromFile(environment, path.c_str(), &model), "loading " + path);
    model_.reset(model);

    LiteRtOptions options = nullptr;
    Check(LiteRtCreateOptions(&options), "LiteRtCreateOptions");
    const Owner<LiteRtOptions> owned_options(options, LiteRtDestroyOptions);
    Check(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu),
          "LiteRtSetOptionsHardwareAccelerators");

    LiteRtCompiledModel compiled = nullptr;
    Check(LiteRtCreateCompiledModel(environment, model, options, &compiled),
          "LiteRtCreateCompiledModel");
    compiled_.reset(compiled);

    ReadTypes();
    CreateBuffers();
  }

  std::size_t batch_size() const { return input_type_.layout.dimensions[0]; }
  std::size_t image_size() const { return CountElements(input_type_.layout, 1); }
  std::size_t num_classes() const { return output_type_.layout.dimensions[1]; }

  // Runs the model on batch_size() images and writes batch_size() * num_classes() outputs.
  void Run(const float* images, float* outputs) {
    void* memory = nullptr;
    Check(LiteRtLockTensorBuffer(input_.get(), &memory, kLiteRtTensorBufferLockModeWrite),
          "locking the input");
    std::memcpy(memory, images, batch_size() * image_size() * sizeof(float));
    Check(LiteRtUnlockTensorBuffer(input_.get()), "unlocking the input");

    LiteRtTensorBuffer input = input_.get();
    LiteRtTensorBuffer output = output_.get();
    Check(LiteRtRunCompiledModel(compiled_.get(), 0, 1, &input, 1, &output),
          "LiteRtRunCompiledModel");

    Check(LiteRtLockTensorBuffer(output, &memory, kLiteRtTensorBufferLockModeRead),
          "locking the output");
    std::memcpy(outputs, memory, batch_size() * num_classes() * sizeof(float));
    Check(LiteRtUnlockTensorBuffer(output), "unlocking the output");
  }

 private:
  void ReadTypes() {
    LiteRtSignature signature = nullptr;
    Check(LiteRtGetModelSignature(model_.get(), 0, &signature), "LiteRtGetModelSignature");
    LiteRtParamIndex inputs = 0;
    LiteRtParamIndex outputs = 0;
    Check(LiteRtGetNumSignatureInputs(signature, &inputs), "LiteRtGetNumSignatureInputs");
    Check(LiteRtGetNumSignatureOutputs(signature, &outputs), "LiteRtGetNumSignatureOutputs");
    if (inputs != 1 || outputs != 1) {
      throw std::runtime_error("expected a model of one input and one output, got " +
                               std::to_string(inputs) + " and " + std::to_string(outputs));
    }
    LiteRtTensor tensor = nullptr;
    Check(LiteRtGetSignatureInputTensorByIndex(signature, 0, &tensor), "finding the input");
    Check(LiteRtGetRankedTensorType(tensor, &input_type_), "reading the input's type");
    Check(LiteRtGetSignatureOutputTensorByIndex(signature, 0, &tensor), "finding the output");
    Check(LiteRtGetRankedTensorType(tensor, &output_type_), "reading the output's type");
    if (input_type_.element_type != kLiteRtElementTypeFloat32 ||
        output_type_.element_type != kLiteRtElementTypeFloat32) {
      throw std::runtime_error("expected a float32 input and output; classify.py takes others");
    }
    const LiteRtLayout& input = input_type_.layout;
    const LiteRtLayout& output = output_type_.layout;
    for (unsigned i = 0; i < input.rank; ++i) {
      if (input.dimensions[i] < 1) {
        throw std::runtime_error("expected a static input shape; export with batch_size=1");
      }
    }
    if (input.rank < 2 || output.rank != 2 || output.dimensions[0] != input.dimensions[0] ||
        output.dimensions[1] < 2) {
      throw std::runtime_error("expected an input [batch, ...] and an output [batch, classes]");
    }
  }

  void CreateBuffers() {
    LiteRtTensorBufferRequirements requirements = nullptr;
    LiteRtTensorBuffer buffer = nullptr;
    Check(LiteRtGetCompiledModelInputBufferRequirements(compiled_.get(), 0, 0, &requirements),
          "asking for the input's buffer");
    Check(LiteRtCreateManagedTensorBufferFromRequirements(environment_.get(), &input_type_,
                                                          requirements, &buffer),
          "creating the input's buffer");
    input_.reset(buffer);
    Check(LiteRtGetCompiledModelOutputBufferRequirements(compiled_.get(), 0, 0, &requirements),
          "asking for the output's buffer");
    Check(LiteRtCreateManagedTensorBufferFromRequirements(environment_.get(), &output_type_,
                                                          requirements, &buffer),
          "creating the output's buffer");
    output_.reset(buffer);
  }

  // Destroyed from the last to the first: what is made from a handle goes before it.
  Owner<LiteRtEnvironment> environment_{nullptr, LiteRtDestroyEnvironment};
  Owner<LiteRtModel> model_{nullptr, LiteRtDestroyModel};
  Owner<LiteRtCompiledModel> compiled_{nullptr, LiteRtDestroyCompiledModel};
  Owner<LiteRtTensorBuffer> input_{nullptr, LiteRtDestroyTensorBuffer};
  Owner<LiteRtTensorBuffer> output_{nullptr, LiteRtDestroyTensorBuffer};
  LiteRtRankedTensorType input_type_{};
  LiteRtRankedTensorType output_type_{};
};

bool AreProbabilities(const std::vector<float>& outputs, std::size_t classes) {
  for (std::size_t i = 0; i < outputs.size(); i += classes) {
    float sum = 0;
    for (std::size_t c = 0; c < classes; ++c) {
      if (outputs[i + c] < 0) return false;
      sum += outputs[i + c];
    }
    if (std::fabs(sum - 1) >= kSumTolerance) return false;
  }
  return true;
}

void Print(const std::vector<float>& outputs, std::size_t classes, std::size_t top) {
  const bool probabilities = AreProbabilities(outputs, classes);
  std::vector<std::size_t> order(classes);
  for (std::size_t image = 0; image * classes < outputs.size(); ++image) {
    const float* row = &outputs[image * classes];
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [row](std::size_t a, std::size_t b) { return row[a] > row[b]; });
    float sum = 0;
    for (std::size_t c = 0; c < classes; ++c) sum += std::exp(row[c] - row[order[0]]);
    std::printf("%zu:", image);
    for (std::size_t i = 0; i < std::min(top, classes); ++i) {
      const float value = row[order[i]];
      const float score = probabilities ? value : std::exp(value - row[order[0]]) / sum;
      std::printf("%s%zu %.4f", i ? "  " : " ", order[i], score);
    }
    std::printf("\n");
  }
}

void ClassifyFile(const std::string& model, const std::string& path, std::size_t top) {
  const std::vector<float> images = ReadFloats(path);
  Classifier classifier(model);
  const std::size_t size = classifier.image_size();
  if (images.size() % size != 0) {
    throw std::runtime_error(path + " has " + std::to_string(images.size()) +
                             " values, expected a multiple of " + std::to_string(size));
  }
  const std::size_t count = images.size() / size;
  const std::size_t batch = classifier.batch_size();
  const std::size_t classes = classifier.num_classes();
  std::vector<float> input(batch * size);
  std::vector<float> output(batch * classes);
  std::vector<float> outputs(count * classes);
  for (std::size_t start = 0; start < count; start += batch) {
    const std::size_t rows = std::min(batch, count - start);
    for (std::size_t i = 0; i < batch; ++i) {
      // The last image fills up the last batch; what comes out for the copies is dropped.
      const float* image = &images[std::min(start + i, count - 1) * size];
      std::copy(image, image + size, &input[i * size]);
    }
    classifier.Run(input.data(), output.data());
    std::copy_n(output.begin(), rows * classes, &outputs[start * classes]);
  }
  Print(outputs, classes, top);
}

}  // namespace

int main(int argc, char** argv) {
  const long top = argc == 4 ? std::strtol(argv[3], nullptr, 10) : 3;
  if (argc < 3 || argc > 4 || top < 1) {
    std::fprintf(stderr, "usage: %s model.tflite images.f32 [top]\n", argv[0]);
    return 2;
  }
  try {
    ClassifyFile(argv[1], argv[2], static_cast<std::size_t>(top));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: error: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
