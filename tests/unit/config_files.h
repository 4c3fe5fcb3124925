// A folder of configuration files for one test, and the error texts that loading them gives.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/train/config.h"

class ConfigFiles : public ::testing::Test {
  protected:
    ConfigFiles() {
        const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
        folder_ = std::filesystem::temp_directory_path() /
                  ("lmo_config_" + std::to_string(getpid()) + "_" + info->name());
        std::filesystem::create_directories(folder_);
        write("base.json", R"({
            "run": {"steps": 100},
            "model": {"n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 64, "vocab_size": 256,
                      "seq_len": 16},
            "data": {"train": "t*.bin", "val": ["v1.bin", "v2.bin"]},
            "batch": {"sequences": 8},
            "optimizer": {"preset": "muon", "lr": 0.001}})");
    }
    ~ConfigFiles() override { std::filesystem::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }

    void write(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories((folder_ / name).parent_path());
        std::ofstream(folder_ / name) << text;
    }

    lmo::Config load(const std::string& name, const std::vector<std::string>& overrides = {},
                     lmo::ConfigUse use = lmo::ConfigUse::train) const {
        return lmo::load_config(path(name), overrides, use);
    }

    // The message, which must be a UsageError's, without the folder's name.
    std::string error(const std::string& name, const std::vector<std::string>& overrides = {},
                      lmo::ConfigUse use = lmo::ConfigUse::train) const {
        try {
            load(name, overrides, use);
        } catch (const lmo::UsageError& error) {
            std::string text = error.what();
            const std::string folder = folder_.string() + "/";
            for (size_t at = text.find(folder); at != std::string::npos; at = text.find(folder)) {
                text.erase(at, folder.size());
            }
            return text;
        }
        return "no error";
    }

    // The error of base.json with these keys on top, given by a file.
    std::string error_with(const std::string& keys) const {
        write("x.json", keys.substr(0, 1) + "\"include\": \"base.json\", " + keys.substr(1));
        return error("x.json");
    }

  private:
    std::filesystem::path folder_;
};
