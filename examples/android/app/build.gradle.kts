plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "kerasnorms.digits"
    compileSdk = 36

    defaultConfig {
        applicationId = "kerasnorms.digits"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    flavorDimensions += "ops"
    productFlavors {
        create("builtin") {
            dimension = "ops"
        }
        create("customOp") {
            dimension = "ops"
            applicationIdSuffix = ".customop"
        }
    }

    // The runtime maps the model into memory, which needs it uncompressed in the package.
    androidResources { noCompress += "tflite" }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    "builtinImplementation"(libs.litert.runtime)
    "builtinImplementation"(libs.litert.gpu)
    "customOpImplementation"(project(":custom_op"))

    testImplementation(libs.junit)
    testImplementation(libs.json) // on a device org.json is part of Android
    androidTestImplementation(libs.androidx.test.runner)
    androidTestImplementation(libs.androidx.test.junit)
}

// The model is made by examples/digits.py, never kept in git.
abstract class CopyModel : DefaultTask() {
    @get:InputFiles
    @get:PathSensitive(PathSensitivity.NONE)
    abstract val model: ConfigurableFileCollection

    @get:Input
    abstract val recipe: Property<String>

    @get:OutputDirectory
    abstract val assets: DirectoryProperty

    @TaskAction
    fun copy() {
        val file = model.singleFile
        if (!file.exists()) {
            throw GradleException("There is no model at $file. Make it: ${recipe.get()}")
        }
        file.copyTo(assets.get().asFile.resolve("digits.tflite"), overwrite = true)
    }
}

androidComponents {
    onVariants { variant ->
        val customOp = variant.flavorName == "customOp"
        val name = if (customOp) "digits_custom_op.tflite" else "digits.tflite"
        val title = variant.name.replaceFirstChar(Char::uppercase)
        val copy = tasks.register<CopyModel>("copy${title}Model") {
            model.from(
                providers.gradleProperty("model")
                    .orElse(rootDir.resolve("../output/$name").path)
            )
            recipe.set(
                if (customOp) "see examples/android/README.md" else "python examples/digits.py"
            )
        }
        variant.sources.assets?.addGeneratedSourceDirectory(copy, CopyModel::assets)
    }
}
