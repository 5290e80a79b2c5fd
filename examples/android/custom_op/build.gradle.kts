// A module of its own, because the path of externalNativeBuild cannot differ between flavors: only
// what depends on this module needs the NDK.
plugins {
    alias(libs.plugins.android.library)
}

android {
    namespace = "kerasnorms.customop"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        externalNativeBuild {
            cmake { arguments += "-DANDROID_STL=c++_static" }
        }
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    externalNativeBuild {
        cmake { path = file("src/main/cpp/CMakeLists.txt") }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    api(libs.litert.interpreter)
}
